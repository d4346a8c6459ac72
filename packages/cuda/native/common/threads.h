// Threads of the library. They block every signal except those of a fault, so that none that is
// meant for the process (Bun's handlers) is ever delivered to them.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>

namespace ckpt {

// `name`: at most 15 characters, shown by ps -T.
std::thread start_thread(const char* name, std::function<void()> body);

// Hardware threads that this process may use, at most `limit`, at least 1.
uint32_t usable_threads(uint32_t limit);

// Calls body(0) .. body(count - 1) from up to `threads` threads and waits. The first exception is
// thrown again here, after all have ended; indices that were not started by then are left out.
void parallel_for(uint64_t count, uint32_t threads, const std::function<void(uint64_t)>& body);

}  // namespace ckpt
