#include "operator/api/model_service.h"

#include <set>

#include "common/messages.h"

namespace rouse::api {
namespace {

constexpr int kMaxReplicas = 1000;
constexpr std::int64_t kMaxDrainSeconds = 3600;

Storage ReadStorage(json::Reader& model) {
  Storage storage;
  const Json& value = model.Object("storage");
  if (!model.status().ok()) return storage;
  json::Reader in(value, model.Path("storage"));
  const bool claim = in.Has("persistentVolumeClaim");
  if (claim == in.Has("hostPath")) {
    model.Fail("storage", "must have exactly one of persistentVolumeClaim and hostPath");
    return storage;
  }
  const char* const key = claim ? "persistentVolumeClaim" : "hostPath";
  json::Reader volume(in.Object(key), in.Path(key));
  if (claim) {
    storage.kind = Storage::Kind::kPersistentVolumeClaim;
    storage.claim_name = volume.String("claimName");
    storage.path = volume.StringOr("path", "");
    if (storage.path.starts_with('/')) volume.Fail("path", "must be relative to the volume's root");
  } else {
    storage.kind = Storage::Kind::kHostPath;
    storage.path = volume.String("path");
    if (!storage.path.starts_with('/')) volume.Fail("path", "must be absolute");
  }
  if (("/" + storage.path + "/").find("/../") != std::string::npos) {
    volume.Fail("path", "must not contain '..'");
  }
  in.Take(volume.status());
  model.Take(in.status());
  return storage;
}

Json ReadEnv(json::Reader& engine) {
  const Json& env = engine.ArrayOrEmpty("env");
  std::set<std::string> seen;
  for (std::size_t i = 0; i < env.size() && engine.status().ok(); ++i) {
    json::Reader entry(env[i], engine.Path("env", i));
    const std::string name = entry.String("name");
    if (entry.Has("value") && entry.Has("valueFrom")) {
      entry.Fail("value", "must not be given together with valueFrom");
    }
    entry.StringOr("value", "");
    entry.ObjectOrEmpty("valueFrom");
    if (!seen.insert(name).second) entry.Fail("name", "\"" + name + "\" is there twice");
    engine.Take(entry.status());
  }
  return env.is_array() ? env : Json::array();
}

Engine ReadEngine(json::Reader& spec) {
  json::Reader in(spec.Object("engine"), spec.Path("engine"));
  Engine engine{.image = in.String("image"),
                .image_pull_policy = in.StringOr("imagePullPolicy", ""),
                .args = in.Has("args") ? in.Strings("args") : std::vector<std::string>{},
                .env = ReadEnv(in),
                .port = static_cast<int>(in.IntOr("port", 8000, 1, 65535)),
                .resources = in.ObjectOrEmpty("resources")};
  if (engine.port == kAgentPort || engine.port == kAgentTlsPort) {
    in.Fail("port", "must not be 7410 or 7411, which are the agent's own");
  }
  spec.Take(in.status());
  return engine;
}

FastStart ReadFastStart(json::Reader& spec) {
  json::Reader in(spec.ObjectOrEmpty("fastStart"), spec.Path("fastStart"));
  FastStart out = ProfileDefaults(in.EnumOr<Profile>("profile", kProfiles, Profile::kShared));

  json::Reader weights(in.ObjectOrEmpty("weights"), in.Path("weights"));
  out.weights_source = weights.EnumOr<WeightSource>("source", kWeightSources, out.weights_source);
  out.weights_fallback = weights.EnumOr<Fallback>("fallback", kFallbacks, out.weights_fallback);
  in.Take(weights.status());

  json::Reader state(in.ObjectOrEmpty("state"), in.Path("state"));
  out.state_reuse = state.BoolOr("reuse", out.state_reuse);
  out.state_required = state.BoolOr("required", out.state_required);
  out.state_copies = static_cast<int>(state.IntOr("copies", out.state_copies, 0, kMaxStateCopies));
  in.Take(state.status());

  json::Reader capture(in.ObjectOrEmpty("graphCapture"), in.Path("graphCapture"));
  out.capture_mode = capture.EnumOr<CaptureMode>("mode", kCaptureModes, out.capture_mode);
  out.capture_trigger =
      capture.EnumOr<CaptureTrigger>("trigger", kCaptureTriggers, out.capture_trigger);
  in.Take(capture.status());

  out.process_start = in.EnumOr<ProcessStart>("processStart", kProcessStarts, out.process_start);
  spec.Take(in.status());
  return out;
}

Json ReadTemplate(json::Reader& spec) {
  const Json& value = spec.ObjectOrEmpty("template");
  json::Reader in(value, spec.Path("template"));
  json::Reader metadata(in.ObjectOrEmpty("metadata"), in.Path("metadata"));
  for (const char* key : {"labels", "annotations"}) {
    for (const auto& [name, text] : metadata.ObjectOrEmpty(key).items()) {
      if (!text.is_string()) metadata.Fail(key, "the value of " + name + " must be a string");
    }
  }
  in.Take(metadata.status());
  in.ObjectOrEmpty("spec");
  spec.Take(in.status());
  return value;
}

}  // namespace

FastStart ProfileDefaults(Profile profile) {
  FastStart out;
  out.profile = profile;
  if (profile == Profile::kLazyCapture) out.capture_mode = CaptureMode::kLazy;
  return out;
}

int DefaultGuards(Profile profile) {
  return profile == Profile::kGuarded ? 1 : 0;
}

Result<ObjectMeta> ObjectMetaFromJson(const Json& object) {
  json::Reader root(object, "");
  json::Reader in(root.Object("metadata"), "metadata");
  ObjectMeta meta{.name = in.String("name"),
                  .ns = in.StringOr("namespace", ""),
                  .uid = in.String("uid"),
                  .resource_version = in.StringOr("resourceVersion", ""),
                  .generation = in.IntOr("generation", 0),
                  .deleting = in.Has("deletionTimestamp")};
  root.Take(in.status());
  ROUSE_RETURN_IF_ERROR(root.status());
  return meta;
}

Result<ModelService> ModelServiceFromJson(const Json& object) {
  ModelService out;
  ROUSE_ASSIGN_OR_RETURN(out.metadata, ObjectMetaFromJson(object));
  json::Reader root(object, "");
  json::Reader in(root.Object("spec"), "spec");
  out.spec.replicas = static_cast<int>(in.IntOr("replicas", 1, 0, kMaxReplicas));

  json::Reader model(in.Object("model"), in.Path("model"));
  out.spec.model = {.name = model.String("name"),
                    .revision = model.StringOr("revision", "main"),
                    .storage = ReadStorage(model)};
  in.Take(model.status());
  out.spec.engine = ReadEngine(in);
  out.spec.fast_start = ReadFastStart(in);

  json::Reader guards(in.ObjectOrEmpty("guards"), in.Path("guards"));
  out.spec.guard_replicas = static_cast<int>(
      guards.IntOr("replicas", DefaultGuards(out.spec.fast_start.profile), 0, kMaxReplicas));
  in.Take(guards.status());

  json::Reader scale_in(in.ObjectOrEmpty("scaleIn"), in.Path("scaleIn"));
  out.spec.drain = std::chrono::seconds(
      scale_in.IntOr("drainSeconds", out.spec.drain.count(), 0, kMaxDrainSeconds));
  in.Take(scale_in.status());

  json::Reader rollout(in.ObjectOrEmpty("rollout"), in.Path("rollout"));
  out.spec.max_surge = static_cast<int>(rollout.IntOr("maxSurge", 0, 0, kMaxReplicas));
  out.spec.max_unavailable = static_cast<int>(rollout.IntOr("maxUnavailable", 1, 0, kMaxReplicas));
  if (out.spec.max_surge == 0 && out.spec.max_unavailable == 0) {
    rollout.Fail("maxUnavailable", "must be above 0 while maxSurge is 0");
  }
  in.Take(rollout.status());
  out.spec.pod_template = ReadTemplate(in);
  root.Take(in.status());
  ROUSE_RETURN_IF_ERROR(root.status());

  if (root.Has("status")) {
    if (auto status = StatusFromJson(root.Object("status"), "status"); status.ok()) {
      out.status = *std::move(status);
    }
  }
  return out;
}

Json ToJson(const Spec& spec) {
  const Storage& storage = spec.model.storage;
  Json volume;
  if (storage.kind == Storage::Kind::kPersistentVolumeClaim) {
    volume["persistentVolumeClaim"] = {{"claimName", storage.claim_name}, {"path", storage.path}};
  } else {
    volume["hostPath"] = {{"path", storage.path}};
  }
  Json engine = {{"image", spec.engine.image},
                 {"args", spec.engine.args},
                 {"env", spec.engine.env},
                 {"port", spec.engine.port},
                 {"resources", spec.engine.resources}};
  if (!spec.engine.image_pull_policy.empty()) {
    engine["imagePullPolicy"] = spec.engine.image_pull_policy;
  }
  const FastStart& fast = spec.fast_start;
  Json capture = {{"mode", json::NameOf<CaptureMode>(fast.capture_mode, kCaptureModes)}};
  if (fast.capture_mode == CaptureMode::kLazy) {
    capture["trigger"] = json::NameOf<CaptureTrigger>(fast.capture_trigger, kCaptureTriggers);
  }
  return {{"replicas", spec.replicas},
          {"model",
           {{"name", spec.model.name}, {"revision", spec.model.revision}, {"storage", volume}}},
          {"engine", engine},
          {"fastStart",
           {{"profile", json::NameOf<Profile>(fast.profile, kProfiles)},
            {"weights",
             {{"source", json::NameOf<WeightSource>(fast.weights_source, kWeightSources)},
              {"fallback", json::NameOf<Fallback>(fast.weights_fallback, kFallbacks)}}},
            {"state",
             {{"reuse", fast.state_reuse},
              {"required", fast.state_required},
              {"copies", fast.state_copies}}},
            {"graphCapture", capture},
            {"processStart", json::NameOf<ProcessStart>(fast.process_start, kProcessStarts)}}},
          {"guards", {{"replicas", spec.guard_replicas}}},
          {"scaleIn", {{"drainSeconds", spec.drain.count()}}},
          {"rollout", {{"maxSurge", spec.max_surge}, {"maxUnavailable", spec.max_unavailable}}},
          {"template", spec.pod_template}};
}

}  // namespace rouse::api
