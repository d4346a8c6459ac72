import { readdir, readFile, stat, unlink } from 'node:fs/promises'
import { join } from 'node:path'

const SHARED_MEMORY = '/dev/shm'
/** `starttime` is the 22nd field of /proc/PID/stat, the 20th after the name. */
const START_FIELD = 19

/** When the process started, in clock ticks after boot; null when there is none. */
export async function processStart(pid: number): Promise<number | null> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, 'utf8')
    // the name may contain spaces and parentheses
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return Number(fields[START_FIELD])
  } catch {
    return null
  }
}

/** Whether the process that wrote `pid` and `start` still runs: a later process may have its pid. */
export async function isAlive(pid: number, start: number | null): Promise<boolean> {
  const now = await processStart(pid)
  return now !== null && (start === null || now === start)
}

/** Removes the shared memory that a dead process of ours left: `/dev/shm/ckpt-<pid>-*`. Returns the names. */
export async function removeSharedMemory(pid: number): Promise<string[]> {
  const prefix = `ckpt-${pid}-`
  const removed: string[] = []
  for (const name of await readdir(SHARED_MEMORY).catch(() => [])) {
    if (!name.startsWith(prefix)) continue
    const path = join(SHARED_MEMORY, name)
    // a name may be anyone's; what is ours has our uid
    const owner = await stat(path).catch(() => null)
    if (owner === null || owner.uid !== process.getuid?.()) continue
    if (
      await unlink(path)
        .then(() => true)
        .catch(() => false)
    )
      removed.push(name)
  }
  return removed
}
