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
      # Variables made of other Services' names could be taken for settings.
      enableServiceLinks: false
      {{- with $v.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml $v.podSecurityContext | nindent 8 }}
      # The programs give themselves {{ $server | ternary 45 90 }} s to finish what is in flight and to
      # empty the journal, after the drain; the rest is slack.
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
          # Nothing listens until Redis has answered.
          startupProbe:
            httpGet: {path: /healthz, port: ops}
            periodSeconds: 2
            failureThreshold: {{ add 5 (div (include "token-provider.seconds" $v.redis.startTimeout | int) 2) }}
          # Never depends on Redis: a restart would mend nothing.
          livenessProbe:
            httpGet: {path: /healthz, port: ops}
            periodSeconds: 10
            timeoutSeconds: 2
          readinessProbe:
            {{- if or $server (not $v.grpc.insecure) }}
            {{- if not $server }}
            # The same answer as the gRPC health service gives, over the ops
            # port: the kubelet's gRPC probe cannot do TLS.
            {{- end }}
            httpGet: {path: /readyz, port: ops}
            {{- else }}
            grpc: {port: 8443}
            {{- end }}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: 2
          {{- if and (not $server) $drain }}
          # Until load balancers know that the pod goes, it takes calls. The
          # token server does this by itself (DRAIN_DELAY).
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
        # Survives a restart of the container, which is what a crash makes. A
        # pod that is told to stop empties it first.
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
        # The whole Secret: the file may name others beside it.
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
  # A volume that is left holds nothing after a clean stop; after a crash it
  # holds answers of Zoom's that nobody else has. So none is thrown away.
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
