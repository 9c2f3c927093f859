{{/* Names and labels. The names of a component's objects end in the component's name. */}}

{{- define "token-provider.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, to leave room for suffixes within a DNS label. */}}
{{- define "token-provider.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "token-provider.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* (list root component) */}}
{{- define "token-provider.selectorLabels" -}}
app.kubernetes.io/name: {{ include "token-provider.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* (list root component) */}}
{{- define "token-provider.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "token-provider.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods, without the chart's version: a new version of the chart alone
     replaces no pod. (list root component) */}}
{{- define "token-provider.podLabels" -}}
{{- include "token-provider.selectorLabels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata of an object: (list root component name annotations?) */}}
{{- define "token-provider.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "token-provider.labels" (list $root (index . 1)) | nindent 2 }}
{{- $annotations := $root.Values.commonAnnotations }}
{{- if gt (len .) 3 }}
{{- $annotations = merge dict (index . 3 | default dict) $annotations }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (list root component values-of-it) */}}
{{- define "token-provider.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- if $account.create }}
{{- $account.name | default (printf "%s-%s" (include "token-provider.fullname" (index . 0)) (index . 1)) }}
{{- else }}
{{- $account.name | default "default" }}
{{- end }}
{{- end }}

{{/* (list image default-tag) */}}
{{- define "token-provider.imageOf" -}}
{{- $image := index . 0 -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The host name of the callback's base URL. */}}
{{- define "token-provider.callbackHost" -}}
{{- (urlParse .Values.callback.baseUrl).host | splitList ":" | first }}
{{- end }}
