# Every pod is restricted, and lives long enough to finish what it runs.
package main

# The components whose pods may have a token: what writes certificates into Secrets.
with_token := {"pki"}

deny contains msg if {
	some where, [pod, container] in containers
	some wrong in unrestricted(pod, container)
	msg := sprintf("%s: %s", [where, wrong])
}

# What a container says goes before what its pod says.
context(pod, container) := object.union(
	object.get(pod.spec, "securityContext", {}),
	object.get(container, "securityContext", {}),
)

unrestricted(pod, container) := {msg |
	some msg, is_so in {
		"may run as root": may_be_root(context(pod, container)),
		"writes to its root file system": is_not(context(pod, container), "readOnlyRootFilesystem", true),
		"may gain privileges": is_not(context(pod, container), "allowPrivilegeEscalation", false),
		"is privileged": object.get(context(pod, container), "privileged", false),
		"keeps capabilities": is_not(context(pod, container), "capabilities", {"drop": ["ALL"]}),
		"has no seccomp profile RuntimeDefault": is_not(context(pod, container), "seccompProfile", {"type": "RuntimeDefault"}),
		"lacks a request or a limit": unbounded(container),
		"its image has no version, or the version latest": is_moving(container.image),
	}
	is_so
}

is_not(object_, key, wanted) := object.get(object_, key, null) != wanted

default may_be_root(_) := true

# A number below 10001 is somebody on a node.
may_be_root(context_) := false if {
	context_.runAsNonRoot == true
	context_.runAsUser > 10000
	context_.runAsGroup > 10000
}

default unbounded(_) := true

# No limit of CPU is asked for: it slows what is well, and protects nobody whose requests are set.
unbounded(container) := false if {
	object.keys(container.resources.requests) & {"cpu", "memory", "ephemeral-storage"} == {"cpu", "memory", "ephemeral-storage"}
	object.keys(container.resources.limits) & {"memory", "ephemeral-storage"} == {"memory", "ephemeral-storage"}
}

default is_moving(_) := true

is_moving(image) := false if regex.match(`@sha256:[0-9a-f]{64}$`, image)

# The last part only: a registry may have a port.
is_moving(image) := false if {
	not contains(image, "@")
	[_, tag] := split(regex.replace(image, `^.*/`, ""), ":")
	not tag in {"", "latest"}
}

deny contains msg if {
	some where, pod in pods
	object.get(pod.spec, "enableServiceLinks", true)
	msg := sprintf("%s: service links would set DAGU_… variables", [where])
}

deny contains msg if {
	some where, pod in pods
	object.get(pod.spec, "automountServiceAccountToken", true)
	not pod.metadata.labels["app.kubernetes.io/component"] in with_token
	msg := sprintf("%s: has a token of the cluster", [where])
}

deny contains msg if {
	some document in documents
	document.kind == "ServiceAccount"
	object.get(document, "automountServiceAccountToken", true)
	msg := sprintf("ServiceAccount %s: hands its token to every pod", [document.metadata.name])
}

deny contains msg if {
	some where, pod in pods
	some shared in {"hostNetwork", "hostPID", "hostIPC"}
	object.get(pod.spec, shared, false)
	msg := sprintf("%s: %s", [where, shared])
}

# How long each service in these settings drains.
drains_s(found) := {service: seconds |
	some service in {"worker", "scheduler"}
	seconds := time.parse_duration_ns(found[service].drain_timeout) / 1000000000
}

deny contains msg if {
	some where, pod in pods
	some found in settings_of(pod)
	some service, seconds in drains_s(found)
	grace_s := object.get(pod.spec, "terminationGracePeriodSeconds", 30)
	grace_s <= seconds
	msg := sprintf("%s: is killed after %d s, and its %s drains for %d s", [where, grace_s, service, seconds])
}

# A rule about a deadline that is not there would hold of everything.
deny contains msg if {
	some where, pod in pods
	some found in settings_of(pod)
	count(drains_s(found)) == 0
	msg := sprintf("%s: no drain deadline in its settings", [where])
}

# What a cluster says of a pod is for one reader, which is not the cluster, and what runs steps does not see it.
deny contains msg if {
	some where, pod in pods
	some volume in pod.spec.volumes
	some source in volume.projected.sources
	object.get(source.serviceAccountToken, "audience", "") == ""
	msg := sprintf("%s: volume %s is a token of the cluster", [where, volume.name])
}

deny contains msg if {
	some where, pod in pods
	some volume in pod.spec.volumes
	some source in volume.projected.sources
	source.serviceAccountToken
	some container in pod.spec.containers
	some mount in container.volumeMounts
	mount.name == volume.name
	msg := sprintf("%s, %s: sees the token in volume %s after the pod has started", [where, container.name, volume.name])
}
