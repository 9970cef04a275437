// The part of the doctor that looks at one ModelService. Only for doctor.cpp.

#pragma once

#include <vector>

#include "operator/kubectl/doctor.h"

namespace rouse::kubectl {

void CheckService(const ServiceView& view, const NamespaceEvidence& evidence, TimePoint now,
                  std::vector<Finding>& out);

}  // namespace rouse::kubectl
