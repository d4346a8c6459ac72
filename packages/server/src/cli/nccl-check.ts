import type { Check } from './check.ts'
import type { FoundLibrary } from './library-check.ts'

const name = 'NCCL'
/** As `cuda/native/cuda/nccl-api.cpp` has it. */
const LEAST: Version = [2, 18]
/** As `cuda/native/cuda/communicator.cpp` has it. */
const LEAST_SHARED: Version = [2, 30]
const USES = '`ckpt serve --broadcast nccl` and updates of several hosts through the ring'
const GET = 'apt-get install libnccl2, or the wheel nvidia-nccl-cu13 on LD_LIBRARY_PATH'

type Version = readonly [major: number, minor: number]

/** What the NCCL that was found is good for; null: none was. */
export function ncclCheck(library: FoundLibrary | null): Check {
  if (library === null) {
    const fix = `only needed for ${USES}: ${GET}`
    return { name, state: 'absent', found: 'no libnccl.so.2', fix }
  }
  const { version } = library
  if (version === null) {
    const found = `${library.name} opens, but does not tell its version`
    return { name, state: 'absent', found, fix: `${USES} need another one: ${GET}` }
  }
  const found = `${library.name} opens: ${version}`
  if (isBelow(version, LEAST)) {
    const fix = `too old: ${USES} need ${LEAST.join('.')} or newer: ${GET}`
    return { name, state: 'absent', found, fix }
  }
  if (isBelow(version, LEAST_SHARED)) {
    const fix = `${USES} work where each rank has a GPU of its own; where ranks share one they need ${LEAST_SHARED.join('.')} or newer: ${GET}`
    return { name, state: 'note', found, fix }
  }
  return { name, state: 'ok', found }
}

function isBelow(version: string, [leastMajor, leastMinor]: Version): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major === leastMajor ? minor < leastMinor : major < leastMajor
}
