{{/*
What a pod of vLLM gets. A chart that has this one as its dependency includes these with `.Subcharts.moescope`, as in
  env: {{- include "moescope.vllm.env" .Subcharts.moescope | trim | nindent 12 }}
templates/example.yaml uses all of them.
*/}}
{{- define "moescope.vllm.env" -}}
- {name: MOESCOPE, value: "1"}
- {name: MOESCOPE_ENDPOINT, value: {{ include "moescope.endpoint" . | quote }}}
- {name: MOESCOPE_TOKEN_FILE, value: /etc/moescope/token}
{{- if eq (include "moescope.scheme" .) "https" }}
- {name: MOESCOPE_CA_FILE, value: /etc/moescope/ca.crt}
{{- end }}
{{- with .Values.vllm.pool }}
- {name: MOESCOPE_POOL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.vllm.traceRate }}
- {name: MOESCOPE_TRACE_RATE, value: {{ . | quote }}}
{{- end }}
{{- if .Values.vllm.copyPlugin }}
- {name: PYTHONPATH, value: /opt/moescope}
{{- end }}
{{- end }}

{{- define "moescope.vllm.volumeMounts" -}}
- {name: moescope-token, mountPath: /etc/moescope, readOnly: true}
{{- if .Values.vllm.copyPlugin }}
- {name: moescope-plugin, mountPath: /opt/moescope, readOnly: true}
{{- end }}
{{- end }}

{{/* The init containers: one copies the plugin and ends; in mode sidecar the other one is the service. */}}
{{- define "moescope.vllm.initContainers" -}}
{{- if .Values.vllm.copyPlugin }}
- name: moescope-plugin
  image: {{ include "moescope.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [cp, -r, /opt/moescope-plugin/., /plugin/]
  resources:
    requests: {cpu: 50m, memory: 32Mi}
    limits: {memory: 64Mi}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: moescope-plugin, mountPath: /plugin}
{{- end }}
{{- if eq .Values.mode "sidecar" }}
# It starts before vLLM and ends after it (a sidecar of Kubernetes 1.29 or newer).
- name: moescope
  restartPolicy: Always
  {{- include "moescope.container" . | trim | nindent 2 }}
{{- end }}
{{- end }}

{{- define "moescope.vllm.volumes" -}}
- name: moescope-token
  {{- if eq (include "moescope.scheme" .) "https" }}
  projected:
    sources:
      - secret: {name: {{ .Values.auth.secret }}, items: [{key: {{ .Values.auth.keys.ingest | quote }}, path: token}]}
      - secret: {name: {{ .Values.tls.secret }}, items: [{key: ca.crt, path: ca.crt}]}
  {{- else }}
  secret: {secretName: {{ .Values.auth.secret }}, items: [{key: {{ .Values.auth.keys.ingest | quote }}, path: token}]}
  {{- end }}
{{- if .Values.vllm.copyPlugin }}
- name: moescope-plugin
  emptyDir: {sizeLimit: 64Mi}
{{- end }}
{{- if eq .Values.mode "sidecar" }}
{{ include "moescope.volumes" . }}
{{- if eq .Values.store.kind "volume" }}
# It outlives the container, and ends with the pod, as the workers do.
- name: moescope-data
  emptyDir: {sizeLimit: {{ include "moescope.storeSize" . }}}
{{- end }}
{{- end }}
{{- end }}
