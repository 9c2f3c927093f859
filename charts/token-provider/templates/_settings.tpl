{{/* The programs' settings, as environment variables and files. */}}

{{/* Directory of the secrets' files in a pod. */}}
{{- define "token-provider.secretDir" -}}
/run/secrets/token-provider
{{- end }}

{{/* A Go duration of one unit, in seconds. */}}
{{- define "token-provider.seconds" -}}
{{- if hasSuffix "h" . }}{{ mul 3600 (trimSuffix "h" . | int) }}
{{- else if hasSuffix "m" . }}{{ mul 60 (trimSuffix "m" . | int) }}
{{- else }}{{ trimSuffix "s" . | int }}
{{- end }}
{{- end }}

{{/* A memory quantity in MiB; 0 if it is empty or has an unsupported unit. */}}
{{- define "token-provider.mebibytes" -}}
{{- $text := toString (. | default "") }}
{{- $number := regexFind "^[0-9]+" $text | default "0" | int64 }}
{{- $unit := regexReplaceAll "^[0-9]+" $text "" }}
{{- if eq $unit "Gi" }}{{ mul $number 1024 }}
{{- else if eq $unit "Mi" }}{{ $number }}
{{- else if eq $unit "G" }}{{ div (mul $number 1000000000) 1048576 }}
{{- else if eq $unit "M" }}{{ div (mul $number 1000000) 1048576 }}
{{- else if eq $unit "" }}{{ div $number 1048576 }}
{{- else }}0
{{- end }}
{{- end }}

{{/* (list SETTING value): an entry of env, or nothing for an empty value, which
     leaves the program's default. Helm reads numbers as floats, and prints 1e+06. */}}
{{- define "token-provider.plain" -}}
{{- $value := index . 1 -}}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
{{- if ne (toString $value) "" }}
- name: {{ index . 0 }}
  value: {{ toString $value | quote }}
{{- end }}
{{- end }}

{{/* Whether a Ref is set: "true" or nothing. */}}
{{- define "token-provider.given" -}}
{{- if or .name .file }}true{{ end }}
{{- end }}

{{/* The secret files of a component, as YAML: setting → its Ref. (list root component) */}}
{{- define "token-provider.secretFiles" -}}
{{- $v := (index . 0).Values -}}
{{- $files := dict "KEYSET_FILE" $v.keysetRef "REDIS_URL_FILE" $v.redis.urlRef
      "ZOOM_CLIENT_SECRET_FILE" $v.zoom.clientSecretRef -}}
{{- if eq (index . 1) "token-server" }}
{{- $files = merge $files (dict "ZOOM_WEBHOOK_SECRET_TOKEN_FILE" $v.zoom.webhookSecretTokenRef
      "RECALL_VERIFICATION_SECRETS_FILE" $v.recall.verificationSecretsRef) }}
{{- else }}
{{- $files = merge $files (dict "RECALL_API_KEY_FILE" $v.recall.apiKeyRef) }}
{{- if not $v.grpc.insecure }}
{{- $tls := $v.grpc.tls }}
{{- $ca := $v.grpc.clientCaRef }}
{{- $files = merge $files (dict
      "GRPC_TLS_CERT_FILE" (dict "name" $tls.secretName "key" "tls.crt" "file" "")
      "GRPC_TLS_KEY_FILE" (dict "name" $tls.secretName "key" "tls.key" "file" "")
      "GRPC_CLIENT_CA_FILE" (dict "name" (or $ca.name $tls.secretName) "key" $ca.key "file" $ca.file)) }}
{{- end }}
{{- end }}
{{- $given := dict }}
{{- range $setting, $ref := $files }}
{{- if include "token-provider.given" $ref }}{{ $_ := set $given $setting $ref }}{{ end }}
{{- end }}
{{- toYaml $given }}
{{- end }}

{{/* The name of a setting's file: zoom-client-secret for ZOOM_CLIENT_SECRET_FILE. */}}
{{- define "token-provider.fileName" -}}
{{- trimSuffix "_FILE" . | lower | replace "_" "-" }}
{{- end }}

{{/* The environment of a component, without extraEnv. (list root component) */}}
{{- define "token-provider.settings" -}}
{{- $root := index . 0 -}}
{{- $v := $root.Values -}}
{{- include "token-provider.plain" (list "OPS_ADDR" ":9090") }}
{{- include "token-provider.plain" (list "JOURNAL_DIR" "/var/lib/token-provider/journal") }}
{{- include "token-provider.plain" (list "LOG_LEVEL" $v.log.level) }}
{{- include "token-provider.plain" (list "LOG_FORMAT" $v.log.format) }}
{{- include "token-provider.plain" (list "REDIS_URL" $v.redis.url) }}
{{- include "token-provider.plain" (list "REDIS_START_TIMEOUT" $v.redis.startTimeout) }}
{{- include "token-provider.plain" (list "REDIS_WAIT_REPLICAS" $v.redis.waitReplicas) }}
{{- if $v.redis.allowDataLoss }}
{{- include "token-provider.plain" (list "REDIS_ALLOW_DATA_LOSS" true) }}
{{- end }}
{{- include "token-provider.plain" (list "KEYSET_KMS_URI" $v.keyset.kmsUri) }}
{{- include "token-provider.plain" (list "RELOAD_INTERVAL" $v.reload.interval) }}
{{- include "token-provider.plain" (list "ZOOM_CLIENT_ID" $v.zoom.clientId) }}
{{- include "token-provider.plain" (list "ZOOM_OAUTH_URL" $v.zoom.oauthUrl) }}
{{- include "token-provider.plain" (list "ZOOM_API_URL" $v.zoom.apiUrl) }}
{{- include "token-provider.plain" (list "REFRESH_BEFORE" $v.refresh.before) }}
{{- include "token-provider.plain" (list "REFRESH_MAX_IN_FLIGHT" $v.refresh.maxInFlight) }}
{{- include "token-provider.plain" (list "REFRESH_MAX_PER_SECOND" $v.refresh.maxPerSecond) }}
{{- if eq (index . 1) "token-server" }}
{{- include "token-provider.plain" (list "HTTP_ADDR" ":8080") }}
{{- include "token-provider.plain" (list "RECALL_VERIFICATION_REQUIRED" $v.recall.verificationRequired) }}
{{- include "token-provider.plain" (list "CACHE_SIZE" $v.cache.size) }}
{{- include "token-provider.plain" (list "MAX_WAITING" $v.maxWaiting) }}
{{- include "token-provider.plain" (list "DRAIN_DELAY" $v.drain.delay) }}
{{- else }}
{{- include "token-provider.plain" (list "GRPC_ADDR" ":8443") }}
{{- if $v.grpc.insecure }}
{{- include "token-provider.plain" (list "GRPC_INSECURE" true) }}
{{- end }}
{{- if $v.grpc.policy }}
{{- include "token-provider.plain" (list "GRPC_POLICY_FILE" "/etc/token-provider/grpc-policy.yaml") }}
{{- end }}
{{- include "token-provider.plain" (list "RECALL_API_URL" $v.recall.apiUrl) }}
{{- include "token-provider.plain" (list "RECALL_OAUTH_APP_ID" $v.recall.oauthAppId) }}
{{- include "token-provider.plain" (list "RECALL_RATE_LIMIT" $v.recall.rateLimit) }}
{{- include "token-provider.plain" (list "CALLBACK_BASE_URL" $v.callback.baseUrl) }}
{{- include "token-provider.plain" (list "CALLBACK_OLD_BASE_URLS" $v.callback.oldBaseUrls) }}
{{- include "token-provider.plain" (list "RECONCILE_INTERVAL" $v.reconcile.interval) }}
{{- end }}
{{- if $v.trustedCAs.configMap }}
{{- /* Go reads this directory in addition to the image's CA file. */}}
{{- include "token-provider.plain" (list "SSL_CERT_DIR" "/etc/token-provider-cas") }}
{{- end }}
{{- with $v.zoom.appsRef }}
{{- include "token-provider.plain" (list "ZOOM_APPS_FILE" (.name | empty | ternary .file (printf "/run/secrets/zoom-apps/%s" .key))) }}
{{- end }}
{{- range $setting, $ref := include "token-provider.secretFiles" . | fromYaml }}
{{- include "token-provider.plain" (list $setting ($ref.file | default (printf "%s/%s" (include "token-provider.secretDir" $) (include "token-provider.fileName" $setting)))) }}
{{- end }}
{{- end }}
