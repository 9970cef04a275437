// plan-preview: what would the operator do? Prints the plan for a state that was exported with
// kubectl, without any cluster:
//
//   kubectl get modelservice demo -o json > service.json
//   kubectl get pods,services -l rouse.dev/modelservice=demo -o json > pods.json
//   plan-preview service.json pods.json [--now 2026-01-02T03:04:05Z] [--pods]
//
// The debugger, the demo and the documentation's example of operator/plan at once.

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <sstream>

#include "operator/plan/observe.h"
#include "operator/plan/planner.h"
#include "operator/plan/render_pod.h"

namespace {

using rouse::Result;
using rouse::json::Json;

Result<Json> ReadJson(const std::string& path) {
  std::ifstream in(path);
  if (!in) return rouse::NotFound(path + ": cannot be opened");
  std::stringstream text;
  text << in.rdbuf();
  return rouse::json::Parse(text.str(), path);
}

Result<rouse::plan::Observed> ReadState(const std::string& service_path,
                                        const std::string& pods_path) {
  ROUSE_ASSIGN_OR_RETURN(const Json service, ReadJson(service_path));
  if (pods_path.empty()) return rouse::plan::ObservedFromObjects(service, {});
  ROUSE_ASSIGN_OR_RETURN(const Json list, ReadJson(pods_path));
  const Json objects = list.is_array() ? list : list.value("items", Json::array());
  return rouse::plan::ObservedFromObjects(service, {objects.begin(), objects.end()});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App cli("Prints what the operator would do for a ModelService and its pods.",
               "plan-preview");
  std::string service_path, pods_path, now_text;
  bool show_pods = false;
  cli.add_option("service", service_path, "kubectl get modelservice NAME -o json")->required();
  cli.add_option("pods", pods_path,
                 "kubectl get pods,services -l rouse.dev/modelservice=NAME -o json");
  cli.add_option("--now", now_text, "The time to plan for; default: the system's");
  cli.add_flag("--pods", show_pods, "Print the pods to be created in full");
  CLI11_PARSE(cli, argc, argv);

  auto now =
      std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
  if (!now_text.empty()) {
    const auto parsed = rouse::api::ParseTime(now_text);
    if (!parsed) {
      std::cerr << "--now: expected a time such as 2026-01-02T03:04:05Z\n";
      return 1;
    }
    now = *parsed;
  }
  const auto observed = ReadState(service_path, pods_path);
  if (!observed.ok()) {
    std::cerr << observed.status().ToString() << "\n";
    return 1;
  }
  const rouse::plan::Plan plan = rouse::plan::MakePlan(*observed, now);
  for (const auto& action : plan.actions) {
    std::cout << rouse::plan::ToString(action) << "\n";
    const auto* create = std::get_if<rouse::plan::CreateInstance>(&action);
    if (show_pods && create != nullptr) {
      rouse::plan::PodConfig config;
      config.agent_image = "AGENT_IMAGE";
      config.agent_facing_url = "https://OPERATOR:7482";
      std::cout << rouse::plan::RenderPod(observed->service, *create, config).dump(2) << "\n";
    }
  }
  if (plan.actions.empty()) std::cout << "nothing to do\n";
  if (plan.replan_after) std::cout << "again in " << plan.replan_after->count() << " ms\n";
  std::cout << "status " << rouse::api::ToJson(plan.status).dump(2) << "\n";
  return 0;
}
