# A secret is a file from a Secret that somebody else made; never a variable, never in what Helm stores.
package main

deny contains msg if {
	some document in documents
	document.kind == "Secret"
	msg := sprintf("Secret %s: whoever may read releases may read it", [document.metadata.name])
}

deny contains msg if {
	some where, [_, container] in containers
	container.envFrom
	msg := sprintf("%s: takes variables from envFrom, unseen", [where])
}

deny contains msg if {
	some where, [_, container] in containers
	some variable in container.env
	variable.valueFrom.secretKeyRef
	msg := sprintf("%s: %s is a secret in a variable", [where, variable.name])
}

deny contains msg if {
	some where, [_, container] in containers
	some variable in container.env
	regex.match(`PASSWORD|PASSPHRASE|SECRET|TOKEN|PRIVATE_KEY`, variable.name)
	not endswith(variable.name, "_FILE")
	msg := sprintf("%s: %s names a secret and is no path to one", [where, variable.name])
}

deny contains msg if {
	some where, pod in pods
	some volume in pod.spec.volumes
	volume.secret
	not only_its_ca(volume.secret)
	object.get(volume.secret, "defaultMode", 420) != 288 # 0440
	msg := sprintf("%s: Secret %s is not mounted with mode 0440", [where, volume.secret.secretName])
}

only_its_ca(secret) if {
	count(secret.items) == 1
	secret.items[0].key == "ca.crt"
}

deny contains msg if {
	some where, [_, container] in containers
	some mount in container.volumeMounts
	mount.subPath
	msg := sprintf("%s: %s is a subPath, which never sees a renewed Secret", [where, mount.mountPath])
}

deny contains msg if {
	some name, found in settings
	walk(found, [path, value])
	path[count(path) - 1] in {"password", "secret", "token_secret", "passphrase"}
	is_string(value)
	msg := sprintf("ConfigMap %s: a secret at %s", [name, concat(".", [sprintf("%v", [part]) | some part in path])])
}

deny contains msg if {
	some document in documents
	document.kind == "ConfigMap"
	some key, text in document.data
	regex.match(`-----BEGIN [A-Z ]*PRIVATE KEY-----`, text)
	msg := sprintf("ConfigMap %s: a private key in %s", [document.metadata.name, key])
}
