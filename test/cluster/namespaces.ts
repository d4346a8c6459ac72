import { join } from 'node:path'
import { ROOT, run } from '../support/process.ts'
import type { Network } from './cluster.ts'

const SCRIPT = join(ROOT, 'scripts/cluster')
const SKIPPED = 77

/** Hosts whose links can be slowed down too. */
export interface Hosts extends Network {
  /** What this node sends, and what it is sent, is at most so many megabits a second from now on. Needs `tc`. */
  rate(node: number, megabits: number): Promise<void>
}

/** Every daemon on a host of its own, as far as the network goes. A text: why this machine does not permit it. */
export async function namespaces(nodes: number): Promise<Hosts | string> {
  const { status, stdout, stderr } = await run([SCRIPT, 'up', `${nodes}`])
  if (status === SKIPPED) return stderr.trim()
  if (status !== 0) throw new Error(`scripts/cluster up: ${stderr}`)
  const id = stdout.trim()
  const tell = async (verb: string, ...words: string[]) => {
    const told = await run([SCRIPT, verb, id, ...words])
    if (told.status !== 0) throw new Error(`scripts/cluster ${verb}: ${told.stderr}`)
  }
  return {
    leader: '10.99.0.1',
    within: (node) => [SCRIPT, 'exec', id, `${node}`],
    cut: (node) => tell('cut', `${node}`),
    mend: (node) => tell('mend', `${node}`),
    rate: (node, megabits) => tell('rate', `${node}`, `${megabits}`),
    close: () => tell('down'),
  }
}
