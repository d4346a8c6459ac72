#include "numa.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>

namespace ckpt {
namespace {

// More than any kernel is built for.
constexpr uint32_t kCpusMax = 8192;
constexpr uint32_t kNodesMax = 1024;
constexpr uint32_t kBitsPerWord = 8 * sizeof(unsigned long);
// linux/mempolicy.h, which not every machine has.
constexpr int kPreferred = 1;

std::vector<uint32_t> list_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  return std::getline(file, text) ? parse_numa_list(text) : std::vector<uint32_t>{};
}

// Whether the machine has several nodes, and this is one of them.
bool is_one_of_several(int32_t node, const std::string& root) {
  if (node < 0) return false;
  const std::vector<uint32_t> online = list_in(root + "/online");
  return online.size() > 1 &&
         std::find(online.begin(), online.end(), static_cast<uint32_t>(node)) != online.end();
}

cpu_set_t* as_set(std::vector<unsigned long>& words) {
  return reinterpret_cast<cpu_set_t*>(words.data());
}

}  // namespace

std::vector<uint32_t> parse_numa_list(const std::string& text) {
  std::vector<uint32_t> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    uint32_t first = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return {};
    uint32_t last = first;
    if (read.ptr != end && *read.ptr == '-') {
      read = std::from_chars(read.ptr + 1, end, last);
      if (read.ec != std::errc()) return {};
    }
    if (last < first || last >= kCpusMax) return {};
    for (uint32_t number = first; number <= last; number++) numbers.push_back(number);
    if (read.ptr != end && (*read.ptr != ',' || read.ptr + 1 == end)) return {};
    at = read.ptr == end ? end : read.ptr + 1;
  }
  return numbers;
}

std::vector<uint32_t> numa_node_cpus(int32_t node, const std::vector<uint32_t>& allowed,
                                     const std::string& root) {
  if (!is_one_of_several(node, root)) return {};
  const std::vector<uint32_t> cpus = list_in(root + "/node" + std::to_string(node) + "/cpulist");
  std::vector<uint32_t> both;
  std::copy_if(cpus.begin(), cpus.end(), std::back_inserter(both), [&](uint32_t cpu) {
    return std::find(allowed.begin(), allowed.end(), cpu) != allowed.end();
  });
  return both;
}

std::vector<uint32_t> allowed_cpus() {
  std::vector<unsigned long> words(kCpusMax / kBitsPerWord);
  std::vector<uint32_t> cpus;
  if (sched_getaffinity(0, kCpusMax / 8, as_set(words)) != 0) return cpus;
  for (uint32_t cpu = 0; cpu < kCpusMax; cpu++) {
    if (CPU_ISSET_S(cpu, kCpusMax / 8, as_set(words))) cpus.push_back(cpu);
  }
  return cpus;
}

bool bind_thread_to_node(int32_t node, const std::string& root) {
  const std::vector<uint32_t> cpus = numa_node_cpus(node, allowed_cpus(), root);
  if (cpus.empty()) return false;
  std::vector<unsigned long> words(kCpusMax / kBitsPerWord);
  for (uint32_t cpu : cpus) CPU_SET_S(cpu, kCpusMax / 8, as_set(words));
  return sched_setaffinity(0, kCpusMax / 8, as_set(words)) == 0;
}

bool prefer_numa_node(void* address, uint64_t bytes, int32_t node, const std::string& root) {
  if (!is_one_of_several(node, root) || node >= static_cast<int32_t>(kNodesMax)) return false;
  std::vector<unsigned long> nodes(kNodesMax / kBitsPerWord);
  nodes[node / kBitsPerWord] = 1ul << (node % kBitsPerWord);
  // The kernel takes the number of bits and one more. EPERM: a container's seccomp filter.
  return syscall(SYS_mbind, address, bytes, kPreferred, nodes.data(), kNodesMax + 1ul, 0u) == 0;
}

}  // namespace ckpt
