{{- define "onsight.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "onsight.selector" -}}
app.kubernetes.io/name: onsight
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "onsight.labels" -}}
{{ include "onsight.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Pods that share a volume of one node cannot be replaced one after the other. */ -}}
{{- define "onsight.strategy" -}}
{{- if and .Values.weights.enabled (ne .Values.weights.accessMode "ReadWriteMany") -}}
type: Recreate
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end -}}
{{- end }}

{{- /* A setting as the environment has it; JSON writes large numbers in full. */ -}}
{{- define "onsight.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if kindIs "slice" . }}{{ join "," . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
