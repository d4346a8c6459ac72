import { mkdir } from 'node:fs/promises'
import { EngineClient } from '../../engines/client.ts'
import type { EngineMark, Journal, JournalDocument } from './journal.ts'
import { isAlive } from './journal-processes.ts'
import type { RankPool } from '../rank/pool.ts'
import type { EngineBook } from './engines.ts'
import { removeSockets } from './sockets.ts'

const RELEASE_MS = 10_000
const IPC = 'ipc://'

/** What a daemon that starts found. */
export interface Recovery {
  /** Addresses at which an engine's worker still waits. */
  readonly left: readonly string[]
}

/**
 * Ends what a dead predecessor left: its marks of engines are taken over, its engines' workers are told to leave (ten seconds at
 * most), its sockets are removed. Its shared memory went when the native library was opened.
 */
export async function recoverFrom(
  document: JournalDocument,
  pool: RankPool,
  book: EngineBook,
  journal: Journal,
): Promise<Recovery> {
  book.restore(marksOf(document), keyOf)
  // the lock of the state directory forbids it; a process of the same pid in another namespace is none of ours
  const alive = await isAlive(document.pid, document.process_start)
  // first of all and in one write: who is killed from here on leaves the next one as much as this one found
  await journal.takeOver(alive ? null : document, book.marks)
  if (alive) return { left: [] }
  const addresses = document.conversations.map((one) => one.address)
  await removeSockets(document.socket_dir)
  const left = await release(addresses, document.socket_dir, pool)
  await journal.ended((address) => pool.keeps(address))
  return { left }
}

/** An engine whose update was cut off holds a part of it, for all we know. */
function marksOf(document: JournalDocument): EngineMark[] {
  const marks = new Map(document.engines.map((mark) => [keyOf(mark), mark]))
  for (const { engine_url: url, uds, update_id, dialect, ended } of document.conversations) {
    if (url === null || ended) continue
    const key = keyOf({ url, uds })
    const known = marks.get(key)
    const fresh = { paused: false, restart_needed: false, listener: null }
    marks.set(key, {
      ...fresh,
      url,
      uds,
      ...known,
      dialect: known?.dialect ?? dialect,
      update_id: known?.update_id ?? update_id,
    })
  }
  return [...marks.values()]
}

async function release(
  addresses: readonly string[],
  socketDir: string,
  pool: RankPool,
): Promise<readonly string[]> {
  // only what lies in the directory of the engines' sockets: the journal may not make us bind anywhere else
  const ours = addresses.filter((one) => one.startsWith(`${IPC}${socketDir}/`))
  const [link] = pool.links
  if (ours.length === 0 || link === undefined) return []
  await mkdir(socketDir, { recursive: true, mode: 0o700 })
  const request = { type: 'release_left', addresses: ours, limitMs: RELEASE_MS } as const
  return (await link.request(request)).left
}

function keyOf(mark: Pick<EngineMark, 'url' | 'uds'>): string {
  const { base } = new EngineClient({ url: mark.url, uds: mark.uds, token: null })
  return mark.uds === null ? base : `${base} unix:${mark.uds}`
}
