{{- define "rouse.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* "rouse" for a release of that name, else RELEASE-rouse. */}}
{{- define "rouse.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 54 | trimSuffix "-" }}
{{- else -}}
{{- $name := include "rouse.name" . -}}
{{- if contains $name .Release.Name -}}
{{ .Release.Name | trunc 54 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 54 | trimSuffix "-" }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The operator's own objects: FULLNAME-operator; at most 63 characters. */}}
{{- define "rouse.operator" -}}
{{ include "rouse.fullname" . }}-operator
{{- end }}

{{/* The Secret of the certificate authorities. */}}
{{- define "rouse.authorities" -}}
{{ include "rouse.fullname" . }}-authorities
{{- end }}

{{- define "rouse.selector" -}}
app.kubernetes.io/name: {{ include "rouse.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "rouse.labels" -}}
{{ include "rouse.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: rouse
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "rouse.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "rouse.operator" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{/* image REPOSITORY:TAG of a dict with "image" and "root". */}}
{{- define "rouse.image" -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end }}
