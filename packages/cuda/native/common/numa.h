// NUMA nodes: which CPUs a thread runs on and which node memory comes from, by the kernel's files
// and calls, without libnuma. On a machine with one node, and where the kernel refuses, everything
// stays as it is: placement is never an error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ckpt {

// Where the kernel describes the nodes.
inline constexpr char kNumaRoot[] = "/sys/devices/system/node";

// "0-3,8,10-11", the form of the kernel's lists of CPUs and nodes. Empty for anything else.
std::vector<uint32_t> parse_numa_list(const std::string& text);

// CPUs of the node that are among `allowed`. Empty when the machine has one node or tells of none,
// when the node is not one of its, and when it has no such CPU (a container's, on other nodes).
std::vector<uint32_t> numa_node_cpus(int32_t node, const std::vector<uint32_t>& allowed,
                                     const std::string& root = kNumaRoot);

// CPUs that the calling thread may run on.
std::vector<uint32_t> allowed_cpus();

// Lets the calling thread, and those that it starts from then on, run on numa_node_cpus only.
// False: they run as before.
bool bind_thread_to_node(int32_t node, const std::string& root = kNumaRoot);

// Pages of the range that are touched from now on come from the node, or from another one when it
// is full. `address` begins a page. False: they come from where they would have come from anyway.
bool prefer_numa_node(void* address, uint64_t bytes, int32_t node,
                      const std::string& root = kNumaRoot);

}  // namespace ckpt
