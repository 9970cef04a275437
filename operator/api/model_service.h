// ModelService as the operator understands it: decoded strictly, with the profile's defaults filled
// in (DESIGN §5), so that nobody behind this header asks "was it set?".
//
// The API server has validated the object against the CRD already; what is checked here again is
// what the operator's own correctness depends on. Pure values; no ownership, no threads.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"
#include "operator/api/status.h"
#include "operator/api/time.h"

namespace rouse::api {

using json::Json;

/// metadata, as far as it is used.
struct ObjectMeta {
  std::string name;
  std::string ns;
  std::string uid;
  std::string resource_version;
  std::int64_t generation = 0;
  bool deleting = false;

  bool operator==(const ObjectMeta&) const = default;
};

/// Where the model folder is; exactly one of the two.
struct Storage {
  enum class Kind { kPersistentVolumeClaim, kHostPath };
  Kind kind = Kind::kPersistentVolumeClaim;
  std::string claim_name;  ///< kPersistentVolumeClaim.
  std::string path;        ///< Inside the volume (may be empty), or absolute on the node.

  bool operator==(const Storage&) const = default;
};

struct Model {
  std::string name;
  std::string revision;
  Storage storage;

  bool operator==(const Model&) const = default;
};

struct Engine {
  std::string image;
  std::string image_pull_policy;  ///< Empty: Kubernetes' own default.
  std::vector<std::string> args;
  Json env = Json::array();  ///< A list of EnvVar, passed through; every entry has a name.
  int port = 8000;
  Json resources = Json::object();

  bool operator==(const Engine&) const = default;
};

enum class Profile { kGuarded, kLazyCapture, kShared };
inline constexpr json::EnumName<Profile> kProfiles[] = {{Profile::kGuarded, "Guarded"},
                                                        {Profile::kLazyCapture, "LazyCapture"},
                                                        {Profile::kShared, "Shared"}};
enum class WeightSource { kPeer, kStorage };
inline constexpr json::EnumName<WeightSource> kWeightSources[] = {
    {WeightSource::kPeer, "Peer"}, {WeightSource::kStorage, "Storage"}};
enum class Fallback { kStorage, kNone };
inline constexpr json::EnumName<Fallback> kFallbacks[] = {{Fallback::kStorage, "Storage"},
                                                          {Fallback::kNone, "None"}};
enum class CaptureMode { kEager, kLazy };
inline constexpr json::EnumName<CaptureMode> kCaptureModes[] = {{CaptureMode::kEager, "Eager"},
                                                                {CaptureMode::kLazy, "Lazy"}};
enum class CaptureTrigger { kFirstRequest, kIdle };
inline constexpr json::EnumName<CaptureTrigger> kCaptureTriggers[] = {
    {CaptureTrigger::kFirstRequest, "FirstRequest"}, {CaptureTrigger::kIdle, "Idle"}};
enum class ProcessStart { kFork, kSpawn };
inline constexpr json::EnumName<ProcessStart> kProcessStarts[] = {{ProcessStart::kFork, "Fork"},
                                                                  {ProcessStart::kSpawn, "Spawn"}};

/// How an instance starts: the profile's choices, each of which the user may have overridden.
struct FastStart {
  Profile profile = Profile::kShared;
  WeightSource weights_source = WeightSource::kPeer;
  Fallback weights_fallback = Fallback::kStorage;
  bool state_reuse = true;
  bool state_required = false;
  int state_copies = 2;
  CaptureMode capture_mode = CaptureMode::kEager;
  CaptureTrigger capture_trigger = CaptureTrigger::kFirstRequest;  ///< Has a meaning with kLazy.
  ProcessStart process_start = ProcessStart::kFork;

  bool operator==(const FastStart&) const = default;
};

struct Spec {
  int replicas = 1;
  Model model;
  Engine engine;
  FastStart fast_start;
  int guard_replicas = 0;
  /// How long requests under way may take before an instance sleeps or goes.
  std::chrono::seconds drain{30};
  /// While a change of the spec is rolled out: replicas above, and serving ones below, what is
  /// wanted. Not both 0.
  int max_surge = 0;
  int max_unavailable = 1;
  Json pod_template = Json::object();  ///< Partial pod: metadata and spec. See plan/overlay.h.

  bool operator==(const Spec&) const = default;
};

struct ModelService {
  ObjectMeta metadata;
  Spec spec;
  ServiceStatus status;

  bool operator==(const ModelService&) const = default;
};

/// What a profile means before any field is overridden.
FastStart ProfileDefaults(Profile profile);
int DefaultGuards(Profile profile);

/// Reads metadata alone, from any object. InvalidArgument when name or uid is missing.
Result<ObjectMeta> ObjectMetaFromJson(const Json& object);

/// Strict: a wrong type, an unknown enum value or a missing required field is InvalidArgument and
/// names the field. An unreadable status does not fail the object: it reads as no status, because
/// the operator is its only writer and will write it anew.
Result<ModelService> ModelServiceFromJson(const Json& object);

/// The spec with every default filled in. Parsing it again gives the same spec.
Json ToJson(const Spec& spec);

}  // namespace rouse::api
