// Guards become replicas (action.h, ClaimGuard).
//
// All who sleep are told first, and then the claims are written on their pods: a command takes a
// hundredth of a write. Nobody else gives either, since only the leader does; that we lead, and
// that our writes arrive, is confirmed before the first command. Should the claims not come to be
// written all the same, guards wake that nobody has claimed: the next pass, or the next leader,
// takes them first or puts them to sleep again.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "operator/actuate/agents.h"
#include "operator/actuate/outcome.h"
#include "operator/actuate/pod_writer.h"
#include "operator/plan/action.h"

namespace rouse::actuate {

/// `confirm`: see Executor. Blocks. Outcome::replan when the next path can be tried at once.
Outcome ClaimGuards(const std::vector<const plan::ClaimGuard*>& claims, const PodWriter& pods,
                    Agents& agents, const std::function<Status()>& confirm);

/// The metadata of a pod that is a guard again, or still, since it could not be woken.
Json MarkedAsGuard(const std::string& uid, const plan::FailedWakes& failed);

}  // namespace rouse::actuate
