// Two digests over a ModelService's spec, which answer two different questions.
//
// Launch identity: may these two instances exchange weights? It covers what decides the content of
// the weights as far as the operator knows it. The agents compare the full weight identity again.
// Revision: does this pod still fit the spec? It covers everything that a running pod cannot take
// over. Both are computed from the spec alone, never from the operator's own flags, so that an
// upgrade of the operator neither restarts nor separates running instances.

#pragma once

#include <string>

#include "operator/api/model_service.h"

namespace rouse::api {

/// First 32 hex digits of the SHA-256 over canonical JSON of model (name, revision, storage), and
/// the engine's image, command, arguments, environment and port, the pod template's changes to the
/// engine container included. The order of arguments and environment counts.
std::string LaunchIdentity(const Spec& spec);

/// The same over model name, revision and image: what kernels depend on that are not keyed by how
/// the engine is launched.
std::string EngineIdentity(const Spec& spec);

/// First 32 hex digits of the SHA-256 over canonical JSON of the defaulted spec without replicas,
/// guards, how weights are obtained, and how many copies of caches are kept.
std::string Revision(const Spec& spec);

}  // namespace rouse::api
