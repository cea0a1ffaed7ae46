# What the rules look at. `conftest test --combine` hands over every document of what was rendered, and of the values
# files beside it: a document with a kind is Kubernetes', one without is values.
package main

documents contains document.contents if {
	some document in input
	document.contents.kind
}

values contains document.contents if {
	some document in input
	not document.contents.kind
}

# What it is called in a message → the pod that it makes, as an object with metadata and spec.
pods[where] := pod if {
	some document in documents
	some pod in template(document)
	where := sprintf("%s %s", [document.kind, document.metadata.name])
}

template(document) := [document] if document.kind == "Pod"

template(document) := [document.spec.template] if {
	document.kind in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}
}

template(document) := [document.spec.jobTemplate.spec.template] if document.kind == "CronJob"

# What it is called in a message → [the pod it is in, the container]. No kind of container is forgotten.
containers[where] := [pod, container] if {
	some outer, pod in pods
	some list in {"initContainers", "containers", "ephemeralContainers"}
	some container in pod.spec[list]
	where := sprintf("%s, %s", [outer, container.name])
}

# The name of a ConfigMap → the settings in its dagu.yaml.
settings[document.metadata.name] := found if {
	some document in documents
	document.kind == "ConfigMap"
	found := yaml.unmarshal(document.data["dagu.yaml"])
}

# The settings that a pod runs with.
settings_of(pod) := {found |
	some volume in pod.spec.volumes
	found := settings[volume.configMap.name]
}

deny contains "nothing was rendered that makes a pod, so nothing was checked" if count(pods) == 0

deny contains msg if {
	some document in documents
	document.kind == "ConfigMap"
	not yaml.is_valid(object.get(document.data, "dagu.yaml", ""))
	msg := sprintf("ConfigMap %s: its dagu.yaml cannot be read, so it was not checked", [document.metadata.name])
}

deny contains msg if {
	some where, pod in pods
	pod.metadata.labels["app.kubernetes.io/component"] in {"coordinator", "worker"}
	count(settings_of(pod)) == 0
	msg := sprintf("%s: mounts no ConfigMap with settings, so they were not checked", [where])
}
