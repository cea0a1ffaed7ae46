# Each rule against what it must refuse: one sound installation, and one change to it that makes exactly this message.
package main

hex := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

labels := {"app.kubernetes.io/instance": "dagu", "app.kubernetes.io/component": "worker"}

worker := {
	"kind": "Deployment",
	"metadata": {"name": "worker"},
	"spec": {"template": {
		"metadata": {"labels": labels},
		"spec": {
			"automountServiceAccountToken": false,
			"enableServiceLinks": false,
			"terminationGracePeriodSeconds": 390,
			"securityContext": {
				"runAsNonRoot": true, "runAsUser": 10001, "runAsGroup": 10001,
				"seccompProfile": {"type": "RuntimeDefault"},
			},
			"containers": [{
				"name": "worker",
				"image": "registry:5000/worker:0.1.0",
				"args": ["worker"],
				"env": [{"name": "DAGU_AUTH_TOKEN_SECRET_FILE", "value": "/etc/dagu/token/token"}],
				"resources": {
					"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
					"limits": {"memory": "1Gi", "ephemeral-storage": "1Gi"},
				},
				"securityContext": {
					"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
					"capabilities": {"drop": ["ALL"]},
				},
				"volumeMounts": [{"name": "tls", "mountPath": "/etc/dagu/tls"}],
			}],
			"volumes": [
				{"name": "config", "configMap": {"name": "settings"}},
				{"name": "tls", "secret": {"secretName": "worker-tls", "defaultMode": 288}},
				{"name": "ca", "secret": {"secretName": "worker-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
			],
		},
	}},
}

file(peer) := yaml.marshal({"worker": {"drain_timeout": "300s"}, "peer": peer})

mutual_files := {
	"cert_file": "/etc/dagu/tls/tls.crt", "key_file": "/etc/dagu/tls/tls.key",
	"client_ca_file": "/etc/dagu/tls/ca.crt",
}

sound := {
	"worker": worker,
	"settings": {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"dagu.yaml": file(mutual_files)}},
	"policy": {"kind": "NetworkPolicy", "metadata": {"name": "worker"}, "spec": {
		"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress", "Egress"],
		"egress": [{"to": [{"podSelector": {}}]}],
	}},
	"account": {"kind": "ServiceAccount", "metadata": {"name": "worker"}, "automountServiceAccountToken": false},
	"values": {},
}

pod := "worker/spec/template/spec"

container := concat("/", [pod, "containers/0"])

said(changes) := found if {
	found := deny with input as [{"path": name, "contents": contents} | some name, contents in json.patch(sound, changes)]
}

put(path, value) := {"op": "add", "path": path, "value": value}

of_pod(key, value) := said([put(concat("/", [pod, key]), value)])

of_container(key, value) := said([put(concat("/", [container, key]), value)])

of_settings(text) := said([put("settings/data/dagu.yaml", text)])

about(what) := {sprintf("Deployment worker, worker: %s", [what])}

test_a_sound_installation_passes if said([]) == set()

# ── pods ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

test_nothing_is_not_sound if {
	"nothing was rendered that makes a pod, so nothing was checked" in deny with input as []
}

test_root_is_refused_whoever_says_it if {
	every change in [["runAsNonRoot", false], ["runAsUser", 0], ["runAsUser", 10000], ["runAsGroup", 0]] {
		of_pod(concat("/", ["securityContext", change[0]]), change[1]) == about("may run as root")
		of_container(concat("/", ["securityContext", change[0]]), change[1]) == about("may run as root")
	}
}

test_each_restriction_is_asked_for if {
	every key, case in {
		"readOnlyRootFilesystem": [false, "writes to its root file system"],
		"allowPrivilegeEscalation": [true, "may gain privileges"],
		"privileged": [true, "is privileged"],
		"capabilities": [{"drop": ["ALL"], "add": ["NET_ADMIN"]}, "keeps capabilities"],
		"seccompProfile": [{"type": "Unconfined"}, "has no seccomp profile RuntimeDefault"],
	} {
		of_container(concat("/", ["securityContext", key]), case[0]) == about(case[1])
	}
}

test_what_is_not_said_is_not_restricted if {
	count(said([{"op": "remove", "path": concat("/", [container, "securityContext"])}])) == 3
	count(said([{"op": "remove", "path": concat("/", [pod, "securityContext"])}])) == 2
}

test_init_and_ephemeral_containers_are_containers if {
	every list in {"initContainers", "ephemeralContainers"} {
		count(of_pod(list, [{"name": "other", "image": "other"}])) == 5
	}
}

test_every_kind_that_makes_pods_is_looked_into if {
	bad := json.patch(worker, [{"op": "remove", "path": "spec/template/spec/enableServiceLinks"}])
	every kind in {"StatefulSet", "DaemonSet", "ReplicaSet", "Job"} {
		count(said([put("worker", object.union(bad, {"kind": kind}))])) == 1
	}
	count(said([put("worker", object.union(bad.spec.template, {"kind": "Pod", "metadata": {"name": "one"}}))])) == 1
	count(said([put("worker", {
		"kind": "CronJob", "metadata": {"name": "daily"},
		"spec": {"jobTemplate": {"spec": bad.spec}},
	})])) == 1
}

test_requests_and_limits_are_asked_for if {
	every missing in {"requests/cpu", "requests/memory", "limits/memory", "limits/ephemeral-storage"} {
		path := concat("/", [container, "resources", missing])
		said([{"op": "remove", "path": path}]) == about("lacks a request or a limit")
	}
}

test_an_image_that_moves_is_refused if {
	every image in {"worker", "worker:latest", "registry:5000/worker", "worker:", "worker@sha256:12"} {
		of_container("image", image) == about("its image has no version, or the version latest")
	}
	of_container("image", sprintf("worker@sha256:%s", [hex])) == set()
}

test_service_links_are_refused if {
	of_pod("enableServiceLinks", true) == {"Deployment worker: service links would set DAGU_… variables"}
}

test_only_the_named_component_has_a_token if {
	of_pod("automountServiceAccountToken", true) == {"Deployment worker: has a token of the cluster"}
	component := "metadata/labels/app.kubernetes.io~1component"
	changes := [
		put(concat("/", [pod, "automountServiceAccountToken"]), true),
		put(concat("/", ["worker/spec/template", component]), "pki"),
		put("policy/spec/podSelector/matchLabels/app.kubernetes.io~1component", "pki"),
	]
	said(changes) == set()
	said([put("account/automountServiceAccountToken", true)]) == {"ServiceAccount worker: hands its token to every pod"}
}

with_a_token(token, mounts) := said([
	put(concat("/", [pod, "volumes/-"]), {"name": "word", "projected": {"sources": [{"serviceAccountToken": token}]}}),
	put(concat("/", [container, "volumeMounts"]), mounts),
])

test_a_pods_own_token_is_for_another_reader_and_for_the_start if {
	ours := {"path": "token", "audience": "spiffe://ours"}
	with_a_token(ours, []) == set()
	with_a_token({"path": "token"}, []) == {"Deployment worker: volume word is a token of the cluster"}
	seen := [{"name": "word", "mountPath": "/word"}]
	with_a_token(ours, seen) == about("sees the token in volume word after the pod has started")
}

test_the_nodes_namespaces_are_refused if {
	every shared in {"hostNetwork", "hostPID", "hostIPC"} {
		of_pod(shared, true) == {sprintf("Deployment worker: %s", [shared])}
	}
}

test_a_pod_outlives_its_drain if {
	of_pod("terminationGracePeriodSeconds", 300) == {"Deployment worker: is killed after 300 s, and its worker drains for 300 s"}
	of_pod("terminationGracePeriodSeconds", 301) == set()
	path := concat("/", [pod, "terminationGracePeriodSeconds"])
	said([{"op": "remove", "path": path}]) == {"Deployment worker: is killed after 30 s, and its worker drains for 300 s"}
	without := yaml.marshal({"worker": {}, "peer": mutual_files})
	of_settings(without) == {"Deployment worker: no drain deadline in its settings"}
	unclear := yaml.marshal({"worker": {"drain_timeout": "soon"}, "peer": mutual_files})
	of_settings(unclear) == {"Deployment worker: no drain deadline in its settings"}
}

# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────

test_a_secret_in_a_chart_is_refused if {
	secret := {"kind": "Secret", "metadata": {"name": "made"}}
	said([put("secret", secret)]) == {"Secret made: whoever may read releases may read it"}
}

test_secrets_are_no_variables if {
	of_container("envFrom", [{"secretRef": {"name": "all"}}]) == about("takes variables from envFrom, unseen")
	reference := {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
	of_container("env/-", reference) == about("X is a secret in a variable")
	plain := {"name": "DAGU_AUTH_BASIC_PASSWORD", "value": "hunter2"}
	of_container("env/-", plain) == about("DAGU_AUTH_BASIC_PASSWORD names a secret and is no path to one")
}

test_secrets_are_mounted_whole_and_narrowly if {
	of_pod("volumes/1/secret/defaultMode", 420) == {"Deployment worker: Secret worker-tls is not mounted with mode 0440"}
	of_pod("volumes/2/secret/items/0/key", "tls.key") == {"Deployment worker: Secret worker-tls is not mounted with mode 0440"}
	of_container("volumeMounts/0/subPath", "tls.crt") == about("/etc/dagu/tls is a subPath, which never sees a renewed Secret")
}

test_secrets_are_in_no_config_map if {
	text := yaml.marshal({
		"worker": {"drain_timeout": "300s"}, "peer": mutual_files,
		"auth": {"basic": {"password": "hunter2"}},
	})
	of_settings(text) == {"ConfigMap settings: a secret at auth.basic.password"}
	key := "-----BEGIN EC PRIVATE KEY-----"
	said([put("settings/data/ca.key", key)]) == {"ConfigMap settings: a private key in ca.key"}
}

# ── keys of CAs ───────────────────────────────────────────────────────────────────────────────────────────────────────

wanted := {"kind": "ConfigMap", "metadata": {"name": "pki"}, "data": {"wanted.json": json.marshal({
	"root": "dagu-root", "ca": "dagu-ca", "join": "dagu-join",
})}}

having(component, volume, mounts) := said([
	put("wanted", wanted),
	put(concat("/", [pod, "volumes/-"]), object.union({"name": "key"}, volume)),
	put("worker/spec/template/metadata/labels/app.kubernetes.io~1component", component),
	put("policy/spec/podSelector/matchLabels/app.kubernetes.io~1component", component),
	put(concat("/", [container, "volumeMounts"]), mounts),
])

in_volume(name, keys) := {"secret": {"secretName": name, "defaultMode": 288, "items": [{"key": key, "path": key} | some key in keys]}}

mounted := [{"name": "key", "mountPath": "/key"}]

test_keys_that_sign_elsewhere_are_in_no_pod if {
	every name in {"dagu-root", "dagu-ca"} {
		elsewhere := {sprintf("Deployment worker: Secret %s has the key of a CA that signs elsewhere", [name])}
		having("worker", in_volume(name, []), []) == elsewhere
		having("coordinator", in_volume(name, ["ca.crt"]), []) == elsewhere
		having("worker", {"projected": {"sources": [{"secret": {"name": name}}]}}, []) == elsewhere
	}
	having("worker", in_volume("dagu-other", []), mounted) == set()
}

test_the_coordinators_ca_is_the_coordinators if {
	found := {"Deployment worker: Secret dagu-join has the key of the coordinator's CA"}
	having("worker", in_volume("dagu-join", ["issuing.crt"]), mounted) == found
	having("coordinator", in_volume("dagu-join", ["issuing.crt"]), mounted) == set()
	having("coordinator", in_volume("dagu-join", ["issuing.key"]), []) == set()
}

test_what_serves_does_not_mount_the_key if {
	every keys in {["issuing.key"], ["issuing.crt", "issuing.key"], []} {
		having("coordinator", in_volume("dagu-join", keys), mounted) == about("mounts the key in Secret dagu-join")
	}
	having("coordinator", in_volume("dagu-join", ["issuing.crt", "pods.json"]), mounted) == set()
}

test_a_job_that_cannot_be_read_is_not_sound if {
	broken := put("wanted", json.patch(wanted, [{"op": "replace", "path": "data/wanted.json", "value": "{"}]))
	said([broken]) == {"ConfigMap pki: its wanted.json cannot be read, so it is not known which Secrets have the keys of CAs"}
}

# ── mutual TLS ────────────────────────────────────────────────────────────────────────────────────────────────────────

not_mutual := {"Deployment worker: no mutual TLS, and no value peer.insecure with the Secret of an exception that it mounts"}

asked := {"peer": {"insecure": true, "exception": {"existingSecret": "exceptions"}}}

exception := {"name": "exception", "secret": {"secretName": "exceptions", "defaultMode": 288}}

plaintext(given, mounted) := said([
	put("settings/data/dagu.yaml", file({"insecure": true})),
	put("values", given),
	put(concat("/", [pod, "volumes/-"]), mounted),
])

test_plaintext_needs_its_value_its_exception_and_the_mount if {
	plaintext(asked, exception) == set()
	plaintext({}, exception) == not_mutual
	plaintext({"peer": {"insecure": true}}, exception) == not_mutual
	plaintext({"peer": {"insecure": false, "exception": {"existingSecret": "exceptions"}}}, exception) == not_mutual
	plaintext(asked, {"name": "other", "emptyDir": {}}) == not_mutual
}

test_half_of_mutual_tls_is_none if {
	every missing in {"cert_file", "key_file", "client_ca_file"} {
		of_settings(file(object.remove(mutual_files, {missing}))) == not_mutual
	}
	of_settings(file(object.union(mutual_files, {"insecure": true}))) == not_mutual
	of_settings(file({})) == not_mutual
	of_settings(yaml.marshal({"worker": {"drain_timeout": "300s"}})) == not_mutual
}

joining(peer, args) := said([
	put("settings/data/dagu.yaml", file(peer)),
	put(concat("/", [pod, "initContainers"]), [object.union(
		object.remove(worker.spec.template.spec.containers[0], {"volumeMounts"}),
		{"name": "join", "args": args},
	)]),
])

test_a_pod_that_joins_needs_no_files_and_nothing_less if {
	joining({}, ["join", "--no-start"]) == set()
	joining({}, ["doctor"]) == not_mutual
	joining({"insecure": true}, ["join"]) == not_mutual
	joining({"insecure": false}, ["join"]) == not_mutual
	joining(object.remove(mutual_files, {"key_file"}), ["join"]) == not_mutual
}

test_a_coordinator_is_a_peer_too if {
	found := {"scheduler": {"drain_timeout": "300s"}, "coordinator": {"enabled": true}}
	of_settings(yaml.marshal(found)) == not_mutual
	of_settings(yaml.marshal(object.union(found, {"coordinator": {"enabled": false}}))) == set()
}

test_settings_that_cannot_be_read_are_not_sound if {
	of_settings("a: [") == {
		"ConfigMap settings: its dagu.yaml cannot be read, so it was not checked",
		"Deployment worker: mounts no ConfigMap with settings, so they were not checked",
	}
}

test_a_service_whose_settings_are_elsewhere_is_not_sound if {
	of_pod("volumes/0/configMap/name", "other") == {"Deployment worker: mounts no ConfigMap with settings, so they were not checked"}
}

test_neither_flags_nor_variables_turn_it_off if {
	of_container("args/-", "--peer.insecure=true") == about("a flag turns mutual TLS off")
	variable := {"name": "DAGU_PEER_INSECURE", "value": "true"}
	of_container("env/-", variable) == about("a variable turns mutual TLS off")
}

# ── network ───────────────────────────────────────────────────────────────────────────────────────────────────────────

unbound := {sprintf("Deployment worker: no NetworkPolicy bounds its %s", [one]) | some one in {"ingress", "egress"}}

test_every_pod_has_a_policy_of_its_own if {
	said([{"op": "remove", "path": "policy"}]) == unbound
	said([put("policy/spec/podSelector/matchLabels/app.kubernetes.io~1component", "other")]) == unbound
	said([{"op": "remove", "path": "policy/spec/podSelector/matchLabels/app.kubernetes.io~1component"}]) == unbound
	said([put("policy/spec/policyTypes", ["Ingress"])]) == {"Deployment worker: no NetworkPolicy bounds its egress"}
	said([put("policy/spec/podSelector/matchExpressions", [{"key": "x", "operator": "Exists"}])]) == unbound
}

test_policies_are_missing_only_where_the_values_turn_them_off if {
	said([{"op": "remove", "path": "policy"}, put("values/networkPolicy", {"enabled": false})]) == set()
	said([{"op": "remove", "path": "policy"}, put("values/networkPolicy", {"enabled": true})]) == unbound
}

test_a_rule_names_its_peers if {
	said([put("policy/spec/egress/-", {"ports": [{"port": 443}]})]) == {"NetworkPolicy worker: a rule of its egress is for everybody"}
	said([put("policy/spec/ingress", [{}])]) == {"NetworkPolicy worker: a rule of its ingress is for everybody"}
}
