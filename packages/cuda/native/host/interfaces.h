// The addresses that other hosts reach this one at.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ckpt {

// What NCCL_SOCKET_IFNAME says: prefixes of names, separated by commas; "=" in front: whole names;
// "^" in front (also "^="): those that are not named.
class InterfaceChoice {
 public:
  explicit InterfaceChoice(const std::string& text);
  bool takes(const std::string& name) const;

 private:
  bool exact_ = false;
  bool except_ = false;
  std::vector<std::string> names_;
};

// IPv4 addresses (network order) of interfaces that are up, at most `limit`: those that
// NCCL_SOCKET_IFNAME takes, or where it is not set those that are not the loopback, Docker's last.
std::vector<uint32_t> interface_addresses(size_t limit);

}  // namespace ckpt
