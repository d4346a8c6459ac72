import { CkptError } from '@ckpt/core'
import { addressText, type DaemonClient } from './client.ts'

const LOOK_MS = 500
const START_MS = 120_000
/** Looks in a row without an answer after which the daemon has ended, and is not only busy. */
const SILENT_LOOKS = 4

/**
 * Whether this process is one of several that torchrun has started on this host and not the first of them: one daemon owns all
 * devices of a host.
 *
 * @throws CkptError `bad_request`
 */
export function isFurtherLocalRank(
  leader: string | null,
  env: Readonly<Record<string, string | undefined>> = process.env,
): boolean {
  const told = env.LOCAL_RANK ?? ''
  if (leader !== 'env' || told === '') return false
  if (!/^\d{1,9}$/.test(told)) {
    throw new CkptError('bad_request', `LOCAL_RANK is '${told}', it must be a whole number`)
  }
  return Number(told) > 0
}

/**
 * Waits for the daemon that local rank 0 is, and until it has ended.
 *
 * @param stopped settles when this process is to end before
 * @throws CkptError `daemon_unreachable`: it does not start
 */
export async function followLocalDaemon(
  client: Pick<DaemonClient, 'answers' | 'address'>,
  stopped: Promise<unknown>,
  times: { readonly lookMs: number; readonly startMs: number } = {
    lookMs: LOOK_MS,
    startMs: START_MS,
  },
): Promise<void> {
  let isStopped = false
  void stopped.then(() => {
    isStopped = true
  })
  const pause = () => Promise.race([Bun.sleep(times.lookMs), stopped])
  const untilMs = performance.now() + times.startMs
  while (!(await client.answers())) {
    if (isStopped) return
    if (performance.now() >= untilMs) {
      const where = addressText(client.address)
      const message = `the daemon of local rank 0 does not answer at ${where} within ${times.startMs / 1000} s`
      throw new CkptError('daemon_unreachable', message)
    }
    await pause()
  }
  for (let silent = 0; silent < SILENT_LOOKS && !isStopped; ) {
    await pause()
    silent = (await client.answers()) ? 0 : silent + 1
  }
}
