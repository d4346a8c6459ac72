#include "interfaces.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "common/error.h"

namespace ckpt {

InterfaceChoice::InterfaceChoice(const std::string& text) {
  size_t first = 0;
  if (text.size() > first && text[first] == '^') {
    except_ = true;
    first++;
  }
  if (text.size() > first && text[first] == '=') {
    exact_ = true;
    first++;
  }
  std::istringstream list(text.substr(first));
  for (std::string name; std::getline(list, name, ',');) {
    if (!name.empty()) names_.push_back(name);
  }
}

bool InterfaceChoice::takes(const std::string& name) const {
  const bool named = std::any_of(names_.begin(), names_.end(), [&](const std::string& one) {
    return exact_ ? name == one : name.rfind(one, 0) == 0;
  });
  return named != except_;
}

std::vector<uint32_t> interface_addresses(size_t limit) {
  const char* setting = std::getenv("NCCL_SOCKET_IFNAME");
  const bool chosen = setting != nullptr && *setting != '\0';
  const InterfaceChoice choice(chosen ? setting : "^docker");
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) fail_errno(CKPT_ERR_IO, errno, "getifaddrs");
  std::vector<uint32_t> first, last;
  for (const ifaddrs* one = list; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    if ((one->ifa_flags & IFF_UP) == 0) continue;
    if (!chosen && (one->ifa_flags & IFF_LOOPBACK) != 0) continue;
    const uint32_t address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr.s_addr;
    if (choice.takes(one->ifa_name)) {
      first.push_back(address);
    } else if (!chosen) {
      last.push_back(address);
    }
  }
  freeifaddrs(list);
  first.insert(first.end(), last.begin(), last.end());
  if (first.size() > limit) first.resize(limit);
  return first;
}

}  // namespace ckpt
