{{- define "dagu.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dagu.fullname" -}}
{{- $name := include "dagu.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (list . "component"): <fullname>-<component>; too long: 54 characters of it, - and 8 of its SHA-256. */}}
{{- define "dagu.component" -}}
{{- $component := index . 1 -}}
{{- if gt (len $component) 61 -}}{{- fail (printf "the component name %q is longer than 61 characters" $component) -}}{{- end -}}
{{- $whole := printf "%s-%s" (include "dagu.fullname" (index . 0)) $component -}}
{{- if gt (len $whole) 63 -}}
{{- printf "%s-%s" (trunc 54 $whole) (sha256sum $whole | trunc 8) -}}
{{- else -}}
{{- $whole -}}
{{- end -}}
{{- end -}}

{{- define "dagu.selector" -}}
app.kubernetes.io/name: {{ include "dagu.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "dagu.labels" -}}
{{ include "dagu.selector" . }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
app.kubernetes.io/version: {{ (index . 0).Values.image.tag | default (index . 0).Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* (list . image): the reference of an image. */}}
{{- define "dagu.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 0).Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "dagu.isDistributed" -}}{{- if eq .Values.deploymentMode "distributed" -}}yes{{- end -}}{{- end -}}
{{- define "dagu.isTls" -}}{{- if not .Values.peer.insecure -}}yes{{- end -}}{{- end -}}
{{- define "dagu.isTested" -}}{{- if and (include "dagu.isTls" .) (include "dagu.isDistributed" .) -}}yes{{- end -}}{{- end -}}
{{- define "dagu.joins" -}}{{- if and .Values.peer.tls.helper.join.enabled (include "dagu.isTested" .) (eq .Values.peer.tls.source "helper") -}}yes{{- end -}}{{- end -}}
{{- define "dagu.trustDomain" -}}{{- .Values.peer.trustDomain | default (printf "%s.%s" (include "dagu.fullname" .) .Release.Namespace) -}}{{- end -}}
{{/* For whom the cluster makes the tokens of pods that join. */}}
{{- define "dagu.audience" -}}{{- printf "spiffe://%s" (include "dagu.trustDomain" .) -}}{{- end -}}
{{- define "dagu.serviceHost" -}}{{- printf "%s.%s.svc.%s" (include "dagu.component" (list . "coordinator")) .Release.Namespace .Values.clusterDomain -}}{{- end -}}
{{- define "dagu.advertise" -}}{{- .Values.coordinator.advertise | default (include "dagu.serviceHost" .) -}}{{- end -}}

{{/* Names that the certificate of the control plane covers, one a line: whatever anybody dials. */}}
{{- define "dagu.dnsNames" -}}
{{- $root := . -}}
{{- $names := list -}}
{{- if not (regexMatch "^[0-9.]+$|:" (include "dagu.advertise" .)) -}}{{- $names = append $names (include "dagu.advertise" .) -}}{{- end -}}
{{- range $part := list "coordinator" "ui" -}}
{{- $service := include "dagu.component" (list $root $part) -}}
{{- $names = concat $names (list $service (printf "%s.%s" $service $root.Release.Namespace) (printf "%s.%s.svc" $service $root.Release.Namespace) (printf "%s.%s.svc.%s" $service $root.Release.Namespace $root.Values.clusterDomain)) -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}{{- $names = append $names .Values.ingress.host -}}{{- end -}}
{{- concat $names (list "localhost") .Values.peer.tls.extraDnsNames | uniq | join "\n" -}}
{{- end -}}

{{- define "dagu.ipAddresses" -}}
{{- $found := concat (list "127.0.0.1") .Values.peer.tls.extraIpAddresses -}}
{{- if regexMatch "^[0-9.]+$|:" (include "dagu.advertise" .) -}}{{- $found = append $found (include "dagu.advertise" .) -}}{{- end -}}
{{- $found | uniq | join "\n" -}}
{{- end -}}

{{/* (list . "coordinator" | "metrics" | "operator" | "worker-<pool>"): the Secret of a certificate. */}}
{{- define "dagu.tlsSecret" -}}
{{- $root := index . 0 -}}{{- $of := index . 1 -}}
{{- $given := $root.Values.peer.tls.existingSecrets -}}
{{- if ne $root.Values.peer.tls.source "existingSecrets" -}}
{{- include "dagu.component" (list $root (printf "%s-tls" $of)) -}}
{{- else if hasPrefix "worker-" $of -}}
{{- $pool := trimPrefix "worker-" $of -}}
{{- required (printf "peer.tls.source is existingSecrets: name the Secret in peer.tls.existingSecrets.workers.%s" $pool) (index $given.workers $pool) -}}
{{- else -}}
{{- required (printf "peer.tls.source is existingSecrets: name the Secret in peer.tls.existingSecrets.%s" $of) (index $given $of) -}}
{{- end -}}
{{- end -}}

{{/* (list . "pool"): its settings as JSON, with those of `worker` where it has none. */}}
{{- define "dagu.pool" -}}
{{- $pool := mergeOverwrite (deepCopy (index . 0).Values.worker) (deepCopy (index (index . 0).Values.workerPools (index . 1) | default dict)) -}}
{{- $least := add $pool.drainTimeoutSeconds 60 | int64 -}}
{{- if not $pool.terminationGracePeriodSeconds -}}
{{- $_ := set $pool "terminationGracePeriodSeconds" (add $least 30) -}}
{{- else if le (int64 $pool.terminationGracePeriodSeconds) $least -}}
{{- fail (printf "workerPools.%s: terminationGracePeriodSeconds must be more than drainTimeoutSeconds + 60 (%d), else running work is killed" (index . 1) $least) -}}
{{- end -}}
{{- if and (eq $pool.enrolment "join") (not (include "dagu.joins" (index . 0))) -}}
{{- fail (printf "workerPools.%s: enrolment join needs peer.tls.helper.join.enabled" (index . 1)) -}}
{{- end -}}
{{- toJson $pool -}}
{{- end -}}

{{/* 10001 is nobody on any node; the images know it. */}}
{{- define "dagu.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dagu.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Rules by which certificates of cert-manager, which knows no labels of ours, name their holders; as JSON. */}}
{{- define "dagu.identityRules" -}}
{{- $rules := .Values.peer.identityRules -}}
{{- if and (not $rules) (eq .Values.peer.tls.source "certManager") -}}
{{- $domain := include "dagu.trustDomain" . -}}
{{- range $role := list "coordinator" "admin" "dispatcher" "metrics" -}}
{{- $rules = append $rules (dict "uri" (printf "spiffe://%s/%s/{name}" $domain $role) "role" $role) -}}
{{- end -}}
{{- $root := . -}}
{{- range $name := keys .Values.workerPools | sortAlpha -}}
{{- $pool := include "dagu.pool" (list $root $name) | fromJson -}}
{{- $rules = append $rules (dict "uri" (printf "spiffe://%s/worker/%s" $domain $name) "role" "worker" "name" $name "labels" $pool.labels) -}}
{{- end -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{- define "dagu.peer" -}}
{{- $peer := dict "insecure" true -}}
{{- if include "dagu.isTls" . -}}
{{- $peer = dict "cert_file" "/etc/dagu/tls/tls.crt" "key_file" "/etc/dagu/tls/tls.key" "client_ca_file" "/etc/dagu/tls/ca.crt" -}}
{{- $rules := include "dagu.identityRules" . | fromJsonArray -}}
{{- if $rules -}}{{- $_ := set $peer "identity_rules" $rules -}}{{- end -}}
{{- if .Values.peer.tls.crl.existingConfigMap -}}{{- $_ := set $peer "crl_file" "/etc/dagu/crl/ca.crl" -}}{{- end -}}
{{- end -}}
{{- toJson $peer -}}
{{- end -}}

{{/* What makes plaintext possible: the ledger of exceptions, as a file of our own. */}}
{{- define "dagu.exceptionContainer" -}}
- name: exception
  image: {{ index . 1 }}
  imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
  command:
    - /opt/secure-dagu/bin/python
    - -c
    - "import os, shutil; os.umask(0o077); shutil.copyfile('/etc/dagu/exception/exceptions.jsonl', '/var/lib/dagu/exceptions.jsonl')"
  securityContext: {{- include "dagu.containerSecurity" (index . 0) | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi, ephemeral-storage: 8Mi}
    limits: {cpu: 100m, memory: 64Mi, ephemeral-storage: 16Mi}
  volumeMounts:
    - {name: data, mountPath: /var/lib/dagu}
    - {name: exception, mountPath: /etc/dagu/exception, readOnly: true}
{{- end -}}

{{/* The issuing CA as the coordinator looks for one: its key in memory only, what else there is of it as links. */}}
{{- define "dagu.issuingContainer" -}}
- name: issuing
  image: {{ index . 1 }}
  imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
  command:
    - /opt/secure-dagu/bin/python
    - /etc/dagu/config/issuing.py
    - /var/lib/dagu/pki
    - /etc/dagu/issuing-source/issuing.key
    - /etc/dagu/issuing-key
    - /etc/dagu/issuing/issuing.crt
    - /etc/dagu/tls/tls.crt
    - /etc/dagu/tls/ca.crt
  securityContext: {{- include "dagu.containerSecurity" (index . 0) | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi, ephemeral-storage: 8Mi}
    limits: {cpu: 100m, memory: 64Mi, ephemeral-storage: 16Mi}
  volumeMounts:
    - {name: data, mountPath: /var/lib/dagu}
    - {name: config, mountPath: /etc/dagu/config, readOnly: true}
    - {name: issuing-source, mountPath: /etc/dagu/issuing-source, readOnly: true}
    - {name: issuing-key, mountPath: /etc/dagu/issuing-key}
{{- end -}}

{{/* What must be so before anything is rendered. */}}
{{- define "dagu.check" -}}
{{- if .Values.peer.insecure -}}
{{- if not .Values.peer.exception.existingSecret -}}{{- fail "peer.insecure needs peer.exception.existingSecret: a Secret with exceptions.jsonl from `secure-dagu exception grant plaintext`" -}}{{- end -}}
{{- if not .Values.ui.tls.existingSecret -}}{{- fail "peer.insecure makes no certificates, and the Web UI speaks HTTPS: name a Secret in ui.tls.existingSecret" -}}{{- end -}}
{{- if .Values.metrics.serviceMonitor.enabled -}}{{- fail "metrics.serviceMonitor proves itself by a certificate, and peer.insecure makes none" -}}{{- end -}}
{{- end -}}
{{- if and .Values.peer.tls.helper.join.enabled (not (include "dagu.joins" .)) -}}{{- fail "peer.tls.helper.join needs the CA of peer.tls.source helper, deploymentMode distributed, and no peer.insecure" -}}{{- end -}}
{{- if and (eq .Values.auth.mode "basic") (not .Values.auth.basic.existingSecret) -}}{{- fail "auth.mode is basic: name the Secret with the password in auth.basic.existingSecret" -}}{{- end -}}
{{- range $wanted := list (list .Values.metrics.serviceMonitor.enabled "monitoring.coreos.com/v1" "metrics.serviceMonitor") (list .Values.metrics.podMonitor.enabled "monitoring.coreos.com/v1" "metrics.podMonitor") (list .Values.metrics.prometheusRule.enabled "monitoring.coreos.com/v1" "metrics.prometheusRule") (list (and (not .Values.peer.insecure) (eq .Values.peer.tls.source "certManager")) "cert-manager.io/v1" "peer.tls.source certManager") -}}
{{- if and (index $wanted 0) (not ($.Capabilities.APIVersions.Has (index $wanted 1))) -}}
{{- fail (printf "%s needs the API %s, which this cluster does not have (with helm template: --api-versions %s)" (index $wanted 2) (index $wanted 1) (index $wanted 1)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dagu.dnsRule" }}
- to:
    - {{ toYaml .Values.networkPolicy.dns | nindent 6 | trim }}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end }}

{{/* (list . "ready" | "health"): an allow-list of addresses, which holds for these paths too, leaves out the kubelet. */}}
{{- define "dagu.webProbe" -}}
{{- if (index . 0).Values.config.ipAccess.allowedIPs -}}
tcpSocket: {port: http}
{{- else -}}
httpGet: {path: /api/v1/{{ index . 1 }}, port: http, scheme: HTTPS}
{{- end -}}
{{- end -}}
