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

{{- define "rouse.testSelector" -}}
app.kubernetes.io/name: {{ include "rouse.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
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

{{/* agent.resources, and the RDMA devices of agent.rdma. */}}
{{- define "rouse.agentResources" -}}
{{- $resources := deepCopy .Values.agent.resources -}}
{{- with .Values.agent.rdma.resourceName -}}
{{- $limits := get $resources "limits" | default dict -}}
{{- if hasKey $limits . -}}
{{- fail (printf "agent.rdma.resourceName and agent.resources.limits both name %s: leave one of them out" .) -}}
{{- end -}}
{{- $_ := set $resources "limits" (set $limits . (int64 $.Values.agent.rdma.count)) -}}
{{- end -}}
{{ toJson $resources }}
{{- end }}

{{/* "yes" where a dict's "want" says so, or is Auto and the cluster knows its "kind" of the Prometheus operator. */}}
{{- define "rouse.monitoring" -}}
{{- if or (eq .want "Always") (and (eq .want "Auto") (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind))) -}}
yes
{{- end -}}
{{- end }}
