{{- define "chatgateway-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "chatgateway-operator.selector" -}}
app.kubernetes.io/name: chatgateway-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "chatgateway-operator.labels" -}}
{{ include "chatgateway-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: chatgateway
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "chatgateway-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "chatgateway-operator.fullname" .) }}
{{- else }}
{{- required "serviceAccount.name: name the service account, or let serviceAccount.create be true" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* A name of an image of ChatGateway's own, with the registry it is in. */ -}}
{{- define "chatgateway-operator.inRegistry" -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .name }}
{{- end }}

{{- define "chatgateway-operator.image" -}}
{{- $name := include "chatgateway-operator.inRegistry" (dict "registry" .Values.imageRegistry "name" .Values.image.repository) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* Empty: the operator knows the name that belongs to its release. */ -}}
{{- define "chatgateway-operator.dataplaneImage" -}}
{{- if .Values.dataplane.image }}
{{- .Values.dataplane.image }}
{{- else if .Values.imageRegistry }}
{{- printf "%s/chatgateway-dataplane:%s" .Values.imageRegistry .Chart.AppVersion }}
{{- end }}
{{- end }}
