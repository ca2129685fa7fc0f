{{- define "nodemesh.labels" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: nodemesh
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "nodemesh.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "nodemesh.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ $tag }}
{{- end -}}
{{- end }}

{{/* What both programs read: they follow the same description of the mesh. */}}
{{- define "nodemesh.readRules" -}}
- apiGroups: [""]
  resources: [namespaces, nodes, pods, serviceaccounts, services]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies, peerauthentications, requestauthentications]
  verbs: [get, list, watch]
- apiGroups: [nodemesh.dev]
  resources: [meshes, ratelimits]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes, tlsroutes, tcproutes]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.x-k8s.io]
  resources: [xbackendtrafficpolicies]
  verbs: [get, list, watch]
- apiGroups: [networking.istio.io]
  resources: [virtualservices, destinationrules, serviceentries]
  verbs: [get, list, watch]
{{- end }}

{{/* Settings that are each fine and cannot be together. */}}
{{- define "nodemesh.contradictions" -}}
{{- $m := .Values.mesh -}}
{{- if and $m.create (eq $m.mtls "STRICT") (not .Values.cni.enabled) -}}
{{- fail "mesh.mtls: STRICT needs cni.enabled: true. Without the plug-in a pod starts before its node's agent has it in hand, and what it says first is lost. Enable the plug-in, or set mesh.mtls: PERMISSIVE." -}}
{{- end -}}
{{- if and $m.create (eq $m.mtls "STRICT") (eq $m.unknownPods "pass") -}}
{{- fail "mesh.mtls: STRICT and mesh.unknownPods: pass contradict each other: a pod whose rules have not arrived would speak in the clear. Set mesh.unknownPods: deny." -}}
{{- end -}}
{{- if and (eq (int .Values.control.replicas) 1) .Values.control.podDisruptionBudget -}}
{{- fail "control.replicas: 1 and control.podDisruptionBudget: true would keep every node with mesh-control from being drained. Use 2 replicas, or set control.podDisruptionBudget: false." -}}
{{- end -}}
{{- end }}
