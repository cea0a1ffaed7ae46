# The keys of CAs that the Job keeps: those that sign other CAs and pods are in no pod, that of the coordinator in its own.
package main

# What the Job of the chart is told, wherever it is told.
told contains found if {
	some document in documents
	document.kind == "ConfigMap"
	found := json.unmarshal(document.data["wanted.json"])
}

deny contains msg if {
	some document in documents
	document.kind == "ConfigMap"
	not json.is_valid(object.get(document.data, "wanted.json", "{}"))
	msg := sprintf("ConfigMap %s: its wanted.json cannot be read, so it is not known which Secrets have the keys of CAs", [document.metadata.name])
}

# Every way in which a pod has a Secret: [the volume, the Secret, which of its keys; none said: all].
taken(pod) := whole | projected if {
	whole := {[volume.name, volume.secret.secretName, keys_in(volume.secret)] | some volume in pod.spec.volumes}
	projected := {[volume.name, source.secret.name, keys_in(source.secret)] |
		some volume in pod.spec.volumes
		some source in volume.projected.sources
	}
}

# Nothing said is everything.
has_key(files) if count(files - {"issuing.crt", "pods.json"}) > 0

has_key(files) if count(files) == 0

keys_in(secret) := {item.key | some item in object.get(secret, "items", [])}

deny contains msg if {
	some where, pod in pods
	some [_, secret, _] in taken(pod)
	some wanted in told
	secret in {wanted.root, wanted.ca}
	msg := sprintf("%s: Secret %s has the key of a CA that signs elsewhere", [where, secret])
}

deny contains msg if {
	some where, pod in pods
	some [_, secret, _] in taken(pod)
	some wanted in told
	secret == wanted.join
	pod.metadata.labels["app.kubernetes.io/component"] != "coordinator"
	msg := sprintf("%s: Secret %s has the key of the coordinator's CA", [where, secret])
}

# The init container makes a private file of it, in memory; what serves and what runs steps does not see the Secret.
deny contains msg if {
	some where, pod in pods
	some [volume, secret, files] in taken(pod)
	some wanted in told
	secret == wanted.join
	has_key(files)
	some container in pod.spec.containers
	some mount in container.volumeMounts
	mount.name == volume
	msg := sprintf("%s, %s: mounts the key in Secret %s", [where, container.name, secret])
}
