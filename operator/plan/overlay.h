// Lays the user's partial pod (spec.template) over the pod that Rouse makes. Pure.
//
// Rules, close to kubectl's strategic merge patch:
//  - Objects are merged member by member; null removes a member.
//  - Lists whose entries have a key are merged by it: an entry with a known key is merged into the
//    one that is there, another is appended. Keys: containers, initContainers, volumes, env,
//    imagePullSecrets, resourceClaims by name; volumeMounts by mountPath; volumeDevices by
//    devicePath; ports by containerPort; tolerations by key and effect; topologySpreadConstraints
//    by topologyKey; hostAliases by ip.
//  - Every other value, lists such as args and command included, is replaced.

#pragma once

#include "common/json.h"

namespace rouse::plan {

using json::Json;

/// `base` with `patch` laid over it.
Json Overlay(Json base, const Json& patch);

}  // namespace rouse::plan
