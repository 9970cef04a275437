// The subcommands of kubectl-rouse: each reads the cluster and writes what the pure functions of
// this folder make of it to standard output.

#pragma once

#include <string>

#include "operator/kubectl/cluster.h"
#include "operator/kubectl/text.h"

namespace rouse::kubectl {

struct Flags {
  std::string kubeconfig;
  std::string context;
  std::string server;
  std::string ns;
  bool all_namespaces = false;
  std::string output = "text";
  bool watch = false;
  std::string name;
  std::string pod;
  int replicas = 0;
  std::string operator_namespace = "rouse-system";
};

/// What a command is given: the cluster, the flags, and the namespace that they mean.
struct Session {
  const Flags& flags;
  std::string ns;  ///< Empty: all.
  kube::Client& client;
  Cluster cluster;
  Screen screen;
};

using Command = Status (*)(Session&);

Status RunStatus(Session& s);
Status RunTimeline(Session& s);
Status RunExplain(Session& s);
Status RunPreview(Session& s);
/// FailedPrecondition when it has found an error.
Status RunDoctor(Session& s);

}  // namespace rouse::kubectl
