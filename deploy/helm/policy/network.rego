# Every pod is bounded in both directions, unless the values turn the policies off.
package main

off if {
	some value in values
	value.networkPolicy.enabled == false
}

deny contains msg if {
	not off
	some where, pod in pods
	some direction in {"Ingress", "Egress"}
	not bounded(pod, direction)
	msg := sprintf("%s: no NetworkPolicy bounds its %s", [where, lower(direction)])
}

bounded(pod, direction) if {
	some document in documents
	document.kind == "NetworkPolicy"
	direction in document.spec.policyTypes
	selected(document.spec.podSelector, pod)
	not broad(document.spec.podSelector)
}

selected(selector, pod) if {
	not selector.matchExpressions
	every key, wanted in object.get(selector, "matchLabels", {}) {
		pod.metadata.labels[key] == wanted
	}
}

# The one that denies everything selects all of ours; a pod must have one of its own as well.
broad(selector) if not selector.matchLabels["app.kubernetes.io/component"]

deny contains msg if {
	some document in documents
	document.kind == "NetworkPolicy"
	some direction, peers in {"ingress": "from", "egress": "to"}
	some rule in document.spec[direction]
	count(object.get(rule, peers, [])) == 0
	msg := sprintf("NetworkPolicy %s: a rule of its %s is for everybody", [document.metadata.name, direction])
}
