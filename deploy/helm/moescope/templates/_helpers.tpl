{{- define "moescope.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "moescope.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "moescope.labels" -}}
{{ include "moescope.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "moescope.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "moescope.scheme" -}}
{{ ternary "https" "http" (and (eq .Values.mode "shared") (ne .Values.tls.secret "")) }}
{{- end }}

{{/* The host by which others in the cluster reach the service. */}}
{{- define "moescope.host" -}}
{{ include "moescope.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Where vLLM's workers send to. */}}
{{- define "moescope.endpoint" -}}
{{- if eq .Values.mode "sidecar" -}}
http://127.0.0.1:{{ .Values.service.port }}
{{- else -}}
{{ include "moescope.scheme" . }}://{{ include "moescope.host" . }}:{{ .Values.service.port }}
{{- end -}}
{{- end }}

{{/* 32 ranks took 221 MiB and 0.09 cores, 128: 366 and 0.23, 256: 418 to 594 and 0.46, 512: 859 and 0.81. Many
questions at once took up to 1 GiB more with 256 ranks (docs/gates.md). */}}
{{- define "moescope.resources" -}}
{{- if .Values.resources -}}
{{ toYaml .Values.resources }}
{{- else -}}
{{- $sizes := dict
  "small" (list "100m" "384Mi" "1Gi")
  "medium" (list "250m" "512Mi" "2Gi")
  "large" (list "500m" "1Gi" "2Gi")
  "huge" (list "1" "2Gi" "4Gi") -}}
{{- $size := get $sizes .Values.fleet -}}
requests: {cpu: {{ index $size 0 | quote }}, memory: {{ index $size 1 }}}
limits: {memory: {{ index $size 2 }}}
{{- end -}}
{{- end }}

{{/* The container of the service, but for its name and for what differs in a sidecar. */}}
{{- define "moescope.container" -}}
{{- $scheme := include "moescope.scheme" . | upper -}}
image: {{ include "moescope.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --host=0.0.0.0
  - --port={{ .Values.service.port }}
  - --tokens-file=/etc/moescope/tokens.toml
  - --metrics-level={{ .Values.metricsLevel }}
  {{- if eq .Values.store.kind "volume" }}
  - --store=/data
  - --store-mib={{ int64 .Values.store.mib }}
  {{- else if eq .Values.store.kind "none" }}
  - --no-store
  {{- end }}
  {{- if eq $scheme "HTTPS" }}
  - --tls-cert=/etc/moescope/tls.crt
  - --tls-key=/etc/moescope/tls.key
  {{- end }}
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $clickhouse := eq .Values.store.kind "clickhouse" }}
{{- if or $clickhouse .Values.extraEnv }}
env:
  {{- if $clickhouse }}
  - name: MOESCOPE_STORE
    valueFrom:
      secretKeyRef: {name: {{ .Values.store.clickhouse.secret }}, key: {{ .Values.store.clickhouse.key }}}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
ports:
  - {name: moescope, containerPort: {{ .Values.service.port }}}
# Nothing is answered before the store is open, which takes long where an upgrade changes its schema.
startupProbe:
  httpGet: {path: /healthz, port: moescope, scheme: {{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
readinessProbe:
  httpGet: {path: /readyz, port: moescope, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: moescope, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
resources:
  {{- include "moescope.resources" . | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: moescope-config, mountPath: /etc/moescope, readOnly: true}
  {{- if eq .Values.store.kind "volume" }}
  - {name: moescope-data, mountPath: /data}
  {{- end }}
  - {name: moescope-tmp, mountPath: /tmp}
{{- end }}

{{/* The volumes of that container, but for its store. */}}
{{- define "moescope.volumes" -}}
# The tokens and what each may do: read again when the Secret changes.
- name: moescope-config
  projected:
    sources:
      - configMap: {name: {{ include "moescope.fullname" . }}-tokens}
      - secret:
          name: {{ .Values.auth.secret }}
          items:
            {{- range $scope, $key := .Values.auth.keys }}
            {{- if $key }}
            - {key: {{ $key | quote }}, path: {{ $scope }}.token}
            {{- end }}
            {{- end }}
      {{- if eq (include "moescope.scheme" .) "https" }}
      - secret: {name: {{ .Values.tls.secret }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
      {{- end }}
- name: moescope-tmp
  emptyDir: {}
{{- end }}

{{- define "moescope.storeSize" -}}
{{ default (printf "%dMi" (add (int .Values.store.mib) 1024)) .Values.store.volume.size }}
{{- end }}
