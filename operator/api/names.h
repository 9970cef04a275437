// Names that Rouse uses on Kubernetes objects and in pods (docs/protocols.md §5).

#pragma once

namespace rouse::api {

inline constexpr char kGroupVersion[] = "rouse.dev/v1alpha1";
inline constexpr char kKind[] = "ModelService";

inline constexpr char kLabelModelService[] = "rouse.dev/modelservice";
inline constexpr char kLabelRole[] = "rouse.dev/role";
inline constexpr char kLabelLaunchIdentity[] = "rouse.dev/launch-identity";

/// Where a pod runs. Kubernetes copies the zone from the node to the pod (PodTopologyLabels
/// admission, on by default from 1.35); the rack is for the cluster's own admission to copy.
inline constexpr char kLabelZone[] = "topology.kubernetes.io/zone";
inline constexpr char kLabelRack[] = "topology.kubernetes.io/rack";

/// What the operator writes when it creates a pod.
inline constexpr char kAnnotationPath[] = "rouse.dev/path";
inline constexpr char kAnnotationPathReason[] = "rouse.dev/path-reason";
/// "true" on a guard that was started without weights: it has none before it is woken.
inline constexpr char kAnnotationBeginsWithout[] = "rouse.dev/begins-without-weights";
inline constexpr char kAnnotationDecidedAtUs[] = "rouse.dev/decided-at-us";
/// First 32 hex digits of the SHA-256 over everything in the spec that a running pod cannot take
/// over: a pod with another value is outdated.
inline constexpr char kAnnotationRevision[] = "rouse.dev/revision";

/// What the operator has decided about a running pod (plan/marks.h).
inline constexpr char kAnnotationLeaving[] = "rouse.dev/leaving";
inline constexpr char kAnnotationFailedWakes[] = "rouse.dev/failed-wakes";

/// Endpoint pickers of the Gateway API inference extension send requests to these ports of a pod:
/// to all when it is absent, to none when it is empty, as it is of whoever is no replica.
inline constexpr char kAnnotationActivePorts[] = "llm-d.ai/active-ports";

/// The pod's readiness gate: the operator says True of whoever may be sent requests.
inline constexpr char kConditionServing[] = "rouse.dev/serving";

/// What the agent reported last.
inline constexpr char kAnnotationAgentState[] = "rouse.dev/agent-state";
inline constexpr char kAnnotationAgentMessage[] = "rouse.dev/agent-message";
inline constexpr char kAnnotationAgentAddress[] = "rouse.dev/agent-address";
inline constexpr char kAnnotationWeights[] = "rouse.dev/weights";
inline constexpr char kAnnotationBytesBySource[] = "rouse.dev/bytes-by-source";
inline constexpr char kAnnotationTransport[] = "rouse.dev/transport";
inline constexpr char kAnnotationTransportFallback[] = "rouse.dev/transport-fallback";
/// Where compile caches came from, and which of them were not used although they were installed.
inline constexpr char kAnnotationStateOrigin[] = "rouse.dev/state-origin";
inline constexpr char kAnnotationStateMiss[] = "rouse.dev/state-miss";
inline constexpr char kAnnotationNodeFacts[] = "rouse.dev/node-facts";
inline constexpr char kAnnotationTimeline[] = "rouse.dev/timeline";

inline constexpr char kFieldManagerReport[] = "rouse-agent-report";
inline constexpr char kFieldManager[] = "rouse-operator";

/// Whom the agents of a namespace trust: a ConfigMap there, and its key.
inline constexpr char kTrustConfigMap[] = "rouse-ca";
inline constexpr char kTrustBundleKey[] = "ca.crt";

inline constexpr char kAgentContainer[] = "agent";
inline constexpr char kEngineContainer[] = "engine";

/// The volume in which an agent keeps compile caches: a pod without it keeps none.
inline constexpr char kStoreVolume[] = "rouse-store";

}  // namespace rouse::api
