{{/* Whoever may read Secrets where Espalier runs holds its signing key: users are never there. */}}
{{- define "espalier.namespaces" -}}
{{- if not .Values.namespaces -}}
{{- fail "namespaces is not set: list the namespaces whose models are trained and served, for example --set 'namespaces={ml}'" -}}
{{- end -}}
{{- if has .Release.Namespace .Values.namespaces -}}
{{- fail (printf "namespaces lists %s, the release's own namespace, where the signing key lies: install Espalier into a namespace of its own, for example --namespace espalier-system --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- .Values.namespaces | toJson -}}
{{- end }}

{{- define "espalier.labels" -}}
app.kubernetes.io/name: espalier
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Takes a list: the root and the component. */}}
{{- define "espalier.selector" -}}
app.kubernetes.io/name: espalier
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Takes a list: the root and the image's name under .Values.images. */}}
{{- define "espalier.image" -}}
{{- $values := (index . 0).Values -}}
{{- $name := index . 1 -}}
{{- $reference := required (printf "images.%s is not set: give the full reference of the %s image" $name $name) (index $values.images $name) -}}
{{- $digest := index $values.imageDigests $name -}}
{{- if and $digest (contains "@" $reference) -}}
{{- fail (printf "images.%s has a digest of its own, and imageDigests.%s is set: leave one of the two out" $name $name) -}}
{{- end -}}
{{- $reference -}}{{- with $digest -}}@{{ . }}{{- end -}}
{{- end }}

{{- define "espalier.gatewayUrl" -}}
http://espalier-gateway.{{ .Release.Namespace }}.svc
{{- end }}

{{/* What operator and gateway have in common. Takes a list: the root and the values of the process. */}}
{{- define "espalier.podDefaults" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- if eq $root.Values.podIds "Fixed" }}
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
volumes:
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with (($process.tls).secretName) }}
- name: tls
  secret: {secretName: {{ . }}}
{{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with $process.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $process.nodeSelector }}
nodeSelector:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with $process.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* What the containers of operator and gateway have in common; the same list. */}}
{{- define "espalier.containerDefaults" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
image: {{ include "espalier.image" (list $root "operator") }}
imagePullPolicy: {{ $root.Values.imagePullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
{{- toYaml $process.resources | nindent 2 }}
volumeMounts:
- name: tmp
  mountPath: /tmp
{{- if (($process.tls).secretName) }}
- name: tls
  mountPath: /etc/espalier/tls
  readOnly: true
{{- end }}
{{- end }}

{{/* The port of a URL. */}}
{{- define "espalier.portOf" -}}
{{- $parsed := urlParse . -}}
{{- $named := regexFind ":[0-9]+$" $parsed.host | trimPrefix ":" -}}
{{- int (default (ternary 80 443 (eq $parsed.scheme "http")) $named) -}}
{{- end }}

{{/* The egress rule of those who send spans; nothing where none are recorded. */}}
{{- define "espalier.collectorEgress" -}}
{{- if .Values.tracing.endpoint -}}
{{- if not .Values.networkPolicy.collectorPeers -}}
{{- fail "tracing.endpoint is set and network policies are made: name the collector in networkPolicy.collectorPeers, for example [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: observability}}}]" -}}
{{- end -}}
- to:
  {{- toYaml .Values.networkPolicy.collectorPeers | nindent 2 }}
  ports:
  - {protocol: TCP, port: {{ include "espalier.portOf" .Values.tracing.endpoint }}}
{{- end -}}
{{- end }}

{{/* The ports by which importers reach the hub: 443, and those of its mirror and proxies. */}}
{{- define "espalier.hubPorts" -}}
{{- $ports := list 443 -}}
{{- range $url := list .Values.hub.endpoint .Values.hub.httpProxy .Values.hub.httpsProxy -}}
{{- if $url -}}
{{- $ports = append $ports (include "espalier.portOf" $url | int) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end }}

{{- define "espalier.commonEnv" -}}
- name: ESPALIER_NAMESPACES
  value: {{ include "espalier.namespaces" . | fromJsonArray | join "," | quote }}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .ratio | quote }}
{{- with .resourceAttributes }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ $said := list }}{{ range $name, $value := . }}{{ $said = append $said (printf "%s=%s" $name $value) }}{{ end }}{{ join "," $said | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether objects of the Prometheus Operator are made. Takes a list: the root and a name under .Values.monitoring. */}}
{{- define "espalier.monitored" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $create := (index $root.Values.monitoring $name).create -}}
{{- $kind := ternary "PodMonitor" "PrometheusRule" (eq $name "podMonitors") -}}
{{- $known := $root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind) -}}
{{- if and (eq $create "Always") (not $known) -}}
{{- fail (printf "monitoring.%s.create is Always, and this cluster does not know the kind %s of the Prometheus Operator: install its CRDs first, or set Auto or Never; helm template is told of them by --api-versions monitoring.coreos.com/v1/%s" $name $kind $kind) -}}
{{- end -}}
{{- and $known (ne $create "Never") -}}
{{- end }}

{{/* The labels that a series of a model's pod gets from its pod. */}}
{{- define "espalier.ofModel" -}}
- sourceLabels: [__meta_kubernetes_pod_label_espalier_dev_role]
  targetLabel: job
  replacement: espalier-$1
- sourceLabels: [__meta_kubernetes_pod_label_espalier_dev_model]
  targetLabel: model
{{- end }}
