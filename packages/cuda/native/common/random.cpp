#include "random.h"

#include <sys/random.h>
#include <sys/types.h>

#include <cerrno>

#include "error.h"

namespace ckpt {

void fill_random(void* bytes, size_t count) {
  if (getrandom(bytes, count, 0) != static_cast<ssize_t>(count))
    fail_errno(CKPT_ERR_IO, errno, "getrandom");
}

}  // namespace ckpt
