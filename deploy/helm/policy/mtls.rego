# Both ends of every connection between processes prove who they are, unless the values say by name that they do not and
# name a Secret with an exception, which ends by itself.
package main

plaintext_was_asked_for(secret) if {
	some value in values
	value.peer.insecure == true
	value.peer.exception.existingSecret == secret
}

excepted(pod) if {
	some volume in pod.spec.volumes
	plaintext_was_asked_for(volume.secret.secretName)
}

talks_to_peers(found) if found.worker

talks_to_peers(found) if found.coordinator.enabled != false

deny contains msg if {
	some where, pod in pods
	some found in settings_of(pod)
	talks_to_peers(found)
	not mutual(found)
	not joined(pod, found)
	not excepted(pod)
	msg := sprintf("%s: no mutual TLS, and no value peer.insecure with the Secret of an exception that it mounts", [where])
}

mutual(found) if {
	object.get(found.peer, "insecure", false) == false
	every key in {"cert_file", "key_file", "client_ca_file"} {
		startswith(found.peer[key], "/")
	}
}

# A pod that joins has its certificate in the standard place, so no setting speaks of one, and none of plaintext.
joined(pod, found) if {
	object.keys(object.get(found, "peer", {})) & {"insecure", "cert_file", "key_file", "client_ca_file"} == set()
	some container in pod.spec.initContainers
	container.args[0] == "join"
}

# Flags and variables go before the file, so neither may speak of it.
deny contains msg if {
	some where, [_, container] in containers
	some word in array.concat(object.get(container, "command", []), object.get(container, "args", []))
	contains(word, "peer.insecure")
	msg := sprintf("%s: a flag turns mutual TLS off", [where])
}

deny contains msg if {
	some where, [_, container] in containers
	some variable in container.env
	variable.name == "DAGU_PEER_INSECURE"
	msg := sprintf("%s: a variable turns mutual TLS off", [where])
}
