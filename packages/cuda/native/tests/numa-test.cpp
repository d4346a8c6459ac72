// Placement on NUMA nodes. What a machine with several nodes would do is played on any: the tests
// describe its nodes in a folder of their own.
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "common/host-memory.h"
#include "common/numa.h"
#include "test.h"

using namespace test;
using Numbers = std::vector<uint32_t>;

namespace {

constexpr int kDefault = 0;
constexpr int kPreferred = 1;

// A folder like /sys/devices/system/node; the CPUs of node i are cpus[i].
class Nodes {
 public:
  explicit Nodes(const std::vector<std::string>& cpus, const std::string& online) {
    char path[] = "/tmp/ckpt-nodes-XXXXXX";
    root_ = mkdtemp(path);
    write("online", online);
    for (size_t node = 0; node < cpus.size(); node++) {
      const std::string folder = "node" + std::to_string(node);
      mkdir((root_ + "/" + folder).c_str(), 0700);
      folders_.push_back(folder);
      write(folder + "/cpulist", cpus[node]);
    }
  }
  ~Nodes() {
    for (const std::string& file : files_) remove((root_ + "/" + file).c_str());
    for (const std::string& folder : folders_) rmdir((root_ + "/" + folder).c_str());
    rmdir(root_.c_str());
  }
  Nodes(const Nodes&) = delete;
  const std::string& root() const { return root_; }

 private:
  void write(const std::string& file, const std::string& text) {
    std::ofstream(root_ + "/" + file) << text << "\n";
    files_.push_back(file);
  }

  std::string root_;
  std::vector<std::string> files_;
  std::vector<std::string> folders_;
};

// The policy of the page at `address`, with the nodes of its mask; -1: the kernel does not tell.
struct Policy {
  int mode = -1;
  unsigned long nodes[16] = {};
  explicit Policy(void* address) {
    constexpr unsigned long kOfAddress = 2;  // MPOL_F_ADDR
    if (syscall(SYS_get_mempolicy, &mode, nodes, 1024ul, address, kOfAddress) != 0) mode = -1;
  }
};

// The node that the page at `address` lies on.
int node_of(void* address) {
  int node = -1;
  const long moved = syscall(SYS_move_pages, 0, 1ul, &address, nullptr, &node, 0);
  return moved == 0 ? node : -1;
}

}  // namespace

TEST("numa: the kernel's lists") {
  using ckpt::parse_numa_list;
  CHECK_EQ(parse_numa_list("0-3,8,10-11"), (Numbers{0, 1, 2, 3, 8, 10, 11}));
  CHECK_EQ(parse_numa_list("0"), Numbers{0});
  CHECK_EQ(parse_numa_list("8191"), Numbers{8191});
  // "" is the list of a node without CPUs
  for (const char* text : {"", ",", "1,", ",1", "a", "1-", "-1", "3-2", "1 2", "1,,2", "0-1-2",
                           "8192", "0-4294967295", "99999999999"}) {
    CHECK_EQ(parse_numa_list(text), Numbers{});
  }
}

TEST("numa: the CPUs of a node are those that the process may use, of several nodes only") {
  using ckpt::numa_node_cpus;
  const Numbers allowed{1, 2, 5};
  const Nodes two({"0-3", "4-7", "8-9", ""}, "0-3");
  CHECK_EQ(numa_node_cpus(0, allowed, two.root()), (Numbers{1, 2}));
  CHECK_EQ(numa_node_cpus(1, allowed, two.root()), Numbers{5});
  // a container may be on other nodes, and a node may have memory only
  for (int32_t node : {2, 3, 4, -1, INT32_MAX}) {
    CHECK_EQ(numa_node_cpus(node, allowed, two.root()), Numbers{});
  }
  const Nodes one({"0-7"}, "0");
  CHECK_EQ(numa_node_cpus(0, allowed, one.root()), Numbers{});
  const Nodes offline({"0-3", "4-7", "8-9"}, "0,2");
  CHECK_EQ(numa_node_cpus(1, allowed, offline.root()), Numbers{});
  CHECK_EQ(numa_node_cpus(0, allowed, "/tmp/there-is-no-such-folder"), Numbers{});
}

TEST("numa: a thread and those that it starts run on their node, the others as before") {
  const Numbers before = ckpt::allowed_cpus();
  CHECK(!before.empty());
  const std::string last = std::to_string(before.back());
  const Nodes nodes({last, "8191"}, "0-1");
  Numbers bound, inherited, elsewhere;
  bool bound_told = false, elsewhere_told = true;
  Thread([&] {
    bound_told = ckpt::bind_thread_to_node(0, nodes.root());
    bound = ckpt::allowed_cpus();
    Thread([&] { inherited = ckpt::allowed_cpus(); });
  });
  Thread([&] {
    elsewhere_told = ckpt::bind_thread_to_node(1, nodes.root());
    elsewhere = ckpt::allowed_cpus();
  });
  CHECK(bound_told);
  CHECK_EQ(bound, Numbers{before.back()});
  CHECK_EQ(inherited, bound);
  CHECK(!elsewhere_told);
  CHECK_EQ(elsewhere, before);
  CHECK_EQ(ckpt::allowed_cpus(), before);
}

TEST("numa: memory prefers its node, whoever touches it") {
  const Nodes two({"0", "8191"}, "0-1");
  const Nodes one({"0"}, "0");
  ckpt::AnonymousMemory memory(4 << 20);
  uint8_t* const begin = static_cast<uint8_t*>(memory.address());
  if (Policy(begin).mode < 0) return;  // a container's filter
  CHECK(!ckpt::prefer_numa_node(begin, 4 << 20, -1, two.root()));
  CHECK(!ckpt::prefer_numa_node(begin, 4 << 20, 2, two.root()));
  CHECK(!ckpt::prefer_numa_node(begin, 4 << 20, 0, one.root()));
  CHECK_EQ(Policy(begin).mode, kDefault);

  // refused by the filter, or node 0 has no memory
  if (!ckpt::prefer_numa_node(begin, 2 << 20, 0, two.root())) return;
  const Policy policy(begin);
  CHECK_EQ(policy.mode, kPreferred);
  CHECK_EQ(policy.nodes[0], 1u);
  CHECK_EQ(Policy(begin + (2 << 20)).mode, kDefault);
  ckpt::populate(begin, 2 << 20, true, 2);
  const int node = node_of(begin);
  CHECK(node == 0 || node == -1);
  // The kernel has no node 1023: nothing is placed, and nothing fails.
  const Nodes many({"0"}, "0-1023");
  CHECK(!ckpt::prefer_numa_node(begin + (2 << 20), 2 << 20, 1023, many.root()));
}

TEST("numa: the calls of the library on this machine") {
  uint32_t bound = 7, placed = 7, buffer = 0;
  GIVES(CKPT_ERR_INVALID, ckpt_thread_bind(-2, &bound));
  GIVES(CKPT_ERR_INVALID, ckpt_thread_bind(0, nullptr));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc_near(4096, -2, &placed, &buffer));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc_near(0, 0, &placed, &buffer));
  GIVES(CKPT_ERR_INVALID, ckpt_buffer_alloc_near(4096, 0, nullptr, &buffer));
  GIVES(CKPT_ERR_MEMORY, ckpt_buffer_alloc_near(uint64_t{1} << 46, 0, &placed, &buffer));
  CHECK_EQ(placed, 7u);
  const std::string root = ckpt::kNumaRoot;
  std::ifstream file(root + "/online");
  std::string online;
  std::getline(file, online);
  const bool several = ckpt::parse_numa_list(online).size() > 1;
  for (int32_t node : {-1, 0, 1023}) {
    int32_t status = CKPT_ERR_STATE;
    Thread([&] { status = ckpt_thread_bind(node, &bound); });
    CHECK_EQ(status, CKPT_OK);
    OK(ckpt_buffer_alloc_near(1'000'001, node, &placed, &buffer));
    uint8_t digest[32];
    OK(ckpt_buffer_sha256(buffer, 0, 1'000'001, digest));
    CHECK_EQ(hex(digest, 32), sha256_of(std::vector<uint8_t>(1'000'001)));
    OK(ckpt_buffer_free(buffer));
    if (several && node == 0) continue;
    CHECK_EQ(bound, 0u);
    CHECK_EQ(placed, 0u);
  }
}
