{{/* A component as a Deployment, or with persistent journals as a StatefulSet.
     (list root component values-of-it) */}}
{{- define "token-provider.workload" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $c := index . 2 -}}
{{- $v := $root.Values -}}
{{- $name := printf "%s-%s" (include "token-provider.fullname" $root) $component -}}
{{- $server := eq $component "token-server" -}}
{{- $selector := include "token-provider.selectorLabels" (list $root $component) -}}
{{- $secrets := include "token-provider.secretFiles" (list $root $component) | fromYaml -}}
{{- $named := dict -}}
{{- range $setting, $ref := $secrets }}{{ if not $ref.file }}{{ $_ := set $named $setting $ref }}{{ end }}{{ end -}}
{{- $drain := include "token-provider.seconds" $v.drain.delay | int -}}
{{- $stateful := $v.journal.persistence.enabled -}}
apiVersion: apps/v1
kind: {{ $stateful | ternary "StatefulSet" "Deployment" }}
metadata:
  {{- include "token-provider.metadata" (list $root $component $name) | nindent 2 }}
spec:
  {{- if not (and $server $c.autoscaling.enabled) }}
  replicas: {{ $c.replicas }}
  {{- end }}
  revisionHistoryLimit: {{ $v.revisionHistoryLimit }}
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  {{- if $stateful }}
  serviceName: {{ $name }}-ops
  podManagementPolicy: Parallel
  updateStrategy: {type: RollingUpdate}
  {{- else }}
  strategy:
    {{- toYaml $c.strategy | nindent 4 }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "token-provider.podLabels" (list $root $component) | nindent 8 }}
        {{- with $c.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ $component }}
        {{- with $c.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "token-provider.serviceAccountName" . }}
      automountServiceAccountToken: false
      # Variables generated for other Services could be mistaken for settings.
      enableServiceLinks: false
      {{- with $v.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml $v.podSecurityContext | nindent 8 }}
      # After the drain, a program takes up to {{ $server | ternary 45 90 }} s to complete requests and
      # to commit its journal; the rest is a margin.
      terminationGracePeriodSeconds: {{ add ($server | ternary 45 90) $drain 10 }}
      {{- with $c.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $c.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $c.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $c.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        {{- if $c.topologySpreadConstraints }}
        {{- toYaml $c.topologySpreadConstraints | nindent 8 }}
        {{- else }}
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - topologyKey: {{ . }}
          maxSkew: 1
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
          {{- if not $stateful }}
          matchLabelKeys: [pod-template-hash]
          {{- end }}
        {{- end }}
        {{- end }}
      containers:
        - name: {{ $component }}
          image: {{ include "token-provider.imageOf" (list $v.image $root.Chart.AppVersion) | quote }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          command: [{{ $server | ternary "/tokenserver" "/registrar" }}]
          env:
            {{- include "token-provider.settings" (list $root $component) | trim | nindent 12 }}
            {{- with $c.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: {{ $server | ternary "http" "grpc" }}, containerPort: {{ $server | ternary 8080 8443 }}, protocol: TCP}
            - {name: ops, containerPort: 9090, protocol: TCP}
          # No port is open until Redis has responded.
          startupProbe:
            httpGet: {path: /healthz, port: ops}
            periodSeconds: 2
            failureThreshold: {{ add 5 (div (include "token-provider.seconds" $v.redis.startTimeout | int) 2) }}
          # Independent of Redis, because a restart would not fix Redis.
          livenessProbe:
            httpGet: {path: /healthz, port: ops}
            periodSeconds: 10
            timeoutSeconds: 2
          readinessProbe:
            {{- if or $server (not $v.grpc.insecure) }}
            {{- if not $server }}
            # The state of the gRPC health service, on the ops port, because the
            # kubelet's gRPC probe does not support TLS.
            {{- end }}
            httpGet: {path: /readyz, port: ops}
            {{- else }}
            grpc: {port: 8443}
            {{- end }}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: 2
          {{- if and (not $server) $drain }}
          # Accepts calls until load balancers have removed the pod. The token
          # server does this itself (DRAIN_DELAY).
          lifecycle:
            preStop:
              sleep: {seconds: {{ $drain }}}
          {{- end }}
          {{- with $c.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            {{- toYaml $v.securityContext | nindent 12 }}
          volumeMounts:
            - {name: journal, mountPath: /var/lib/token-provider}
            {{- if $named }}
            - {name: secrets, mountPath: {{ include "token-provider.secretDir" . }}, readOnly: true}
            {{- end }}
            {{- if $v.zoom.appsRef.name }}
            - {name: zoom-apps, mountPath: /run/secrets/zoom-apps, readOnly: true}
            {{- end }}
            {{- if and $v.grpc.policy (not $server) }}
            - {name: config, mountPath: /etc/token-provider, readOnly: true}
            {{- end }}
            {{- if $v.trustedCAs.configMap }}
            - {name: trusted-cas, mountPath: /etc/token-provider-cas, readOnly: true}
            {{- end }}
            {{- with $c.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        {{- if not $stateful }}
        # Survives a crash, which restarts only the container. A pod that stops
        # commits its journal first.
        - name: journal
          emptyDir: {sizeLimit: {{ $v.journal.sizeLimit }}}
        {{- end }}
        {{- if $named }}
        - name: secrets
          projected:
            defaultMode: 0440
            sources:
              {{- range $setting, $ref := $named }}
              - secret:
                  name: {{ $ref.name }}
                  items: [{key: {{ $ref.key | quote }}, path: {{ include "token-provider.fileName" $setting }}}]
              {{- end }}
        {{- end }}
        {{- if $v.zoom.appsRef.name }}
        # All keys, because the file may refer to other files in the Secret.
        - name: zoom-apps
          secret: {secretName: {{ $v.zoom.appsRef.name }}, defaultMode: 0440}
        {{- end }}
        {{- if and $v.grpc.policy (not $server) }}
        - name: config
          configMap: {name: {{ $name }}}
        {{- end }}
        {{- if $v.trustedCAs.configMap }}
        - name: trusted-cas
          configMap: {name: {{ $v.trustedCAs.configMap }}}
        {{- end }}
        {{- with $c.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- if $stateful }}
  # After a crash, a volume may hold the only copy of a response from Zoom, so
  # volumes are retained. After a clean stop, everything is committed.
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Retain}
  volumeClaimTemplates:
    - metadata: {name: journal}
      spec:
        accessModes: {{ toJson $v.journal.persistence.accessModes }}
        {{- with $v.journal.persistence.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ $v.journal.persistence.size }}}}
  {{- end }}
{{- end }}
