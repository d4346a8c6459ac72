import { readFile } from 'node:fs/promises'

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
