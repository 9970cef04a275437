// UCX's status codes in our vocabulary. Private to agent/ucx.

#pragma once

#include <ucs/type/status.h>

#include <string_view>

#include "common/result.h"

namespace rouse::ucx {

/// Ok for UCS_OK and UCS_INPROGRESS; else a Status coded by what the caller may do, saying "`what`:
/// UCX's text".
Status ToStatus(ucs_status_t status, std::string_view what);

}  // namespace rouse::ucx
