#pragma once

#include <string>

namespace rouse {

/// An IPv6 address needs brackets, or its end would be taken for a port (RFC 3986 §3.2.2).
inline std::string HostInUrl(const std::string& host) {
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

}  // namespace rouse
