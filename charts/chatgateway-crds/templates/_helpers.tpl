{{- define "chatgateway-crds.labels" -}}
app.kubernetes.io/name: chatgateway-crds
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: chatgateway
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "chatgateway-crds-%s" .Chart.Version | replace "+" "_" }}
{{- end }}
