// ckpt-tests --child bench-broadcast: GB/s of broadcasts of 256 MiB between two processes, over
// each of UCX's ways between processes of one machine. Every byte is checked once.
#include <cstdio>
#include <cstdlib>

#include "process-members.h"

namespace test {
namespace {

constexpr uint64_t kBytes = 256ull << 20;
constexpr uint32_t kRounds = 8;

void broadcast(const ProcessMembers::One& self) {
  OK(ckpt_communicator_broadcast(self.communicator, self.stream, self.memory, 0, 0, kBytes));
  OK(ckpt_stream_sync(self.stream, 0, 60000));
}

// The first round connects and registers.
double seconds_of_rounds(const ProcessMembers::One& self) {
  broadcast(self);
  const auto start = Clock::now();
  for (uint32_t round = 0; round < kRounds; round++) broadcast(self);
  return seconds_since(start) / kRounds;
}

}  // namespace

// bench-broadcast [TRANSPORTS ID]
int bench_broadcast_child(const std::vector<std::string>& arguments) {
  const ckpt_config config{1, 0, kBytes + (16ull << 20), 0, 0};
  if (arguments.size() > 1) {
    setenv("UCX_TLS", arguments[1].c_str(), 1);
    OK(ckpt_init(&config));
    ProcessMembers own(ProcessId128::parse(arguments[2]), 2, {1}, kBytes);
    OK(ckpt_memory_fill(own.all[0].memory, 0, kBytes, 1));
    seconds_of_rounds(own.all[0]);
    printf("%s", memory_sha256(own.all[0].memory, 0, kBytes).c_str());
    own.destroy();
    return 0;
  }
  OK(ckpt_init(&config));
  printf("# broadcast of 256 MiB between two processes\n# UCX_TLS  GB/s  #wrong\n");
  int wrong_count = 0;
  for (const char* transports : {"tcp", "posix,self", "posix,cma,self", "all"}) {
    setenv("UCX_TLS", transports, 1);
    const ProcessId128 id = ProcessId128::make(2);
    ChildResult result{};
    Thread child([&] { result = run_child({"bench-broadcast", transports, id.hex()}); });
    ProcessMembers own(id, 2, {0}, kBytes);
    OK(ckpt_memory_fill(own.all[0].memory, 0, kBytes, 5));
    const double seconds = seconds_of_rounds(own.all[0]);
    const std::string digest = memory_sha256(own.all[0].memory, 0, kBytes);
    child.join();
    own.destroy();
    const int wrong = result.output == digest ? 0 : 1;
    wrong_count += wrong;
    printf("%-16s %6.2f %d\n", transports, static_cast<double>(kBytes) / seconds / 1e9, wrong);
    fflush(stdout);
  }
  return wrong_count;
}

}  // namespace test
