import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { freePort } from 'ckpt/daemon/cluster/testing/free-port'
import { type DaemonProcess, startDaemon } from './service.ts'

/** Until each knows of the ranks of all. */
const JOIN_MS = 30_000
const LOOK_MS = 10

/**
 * `ckpt serve` as so many processes of this machine, of one rank each, that have joined: the first leads. They end with `stack`.
 *
 * @param dir the state of each lies below it
 * @throws Error when they have not joined in time
 */
export async function startDaemons(
  stack: AsyncDisposableStack,
  devices: string,
  count: number,
  dir: string,
  flags: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<readonly DaemonProcess[]> {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  const leader = `127.0.0.1:${freePort()}`
  const tokenFile = join(dir, 'token')
  writeFileSync(tokenFile, crypto.randomUUID(), { mode: 0o600 })
  const starting = Array.from({ length: count }, (_, node) => {
    const own = join(dir, `node-${node}`)
    mkdirSync(own, { mode: 0o700 })
    const place = ['--leader', leader, '--node-rank', String(node), '--nodes', String(count)]
    const all = [...place, '--cluster-token-file', tokenFile, ...flags]
    return startDaemon(stack, devices, 1, own, all, env)
  })
  const daemons = await Promise.all(starting)
  const [first] = daemons
  if (first === undefined) throw new Error('no daemon leads')
  const endMs = performance.now() + JOIN_MS
  while ((await first.client.status()).ranks.length < count) {
    if (performance.now() > endMs) throw new Error(`${count} daemons have not joined`)
    await Bun.sleep(LOOK_MS)
  }
  return daemons
}
