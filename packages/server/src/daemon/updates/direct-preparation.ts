import { CkptError, type Failure } from '@ckpt/core'
import { clockMs } from '../clock.ts'
import { log } from '../log.ts'
import type { HeldVersion } from '../types.ts'
import { abortOf, type EngineContact } from './contact.ts'
import { UpdateConversations } from './conversations.ts'
import { directObstacle } from './direct-obstacle.ts'
import { keepLayout } from './plan.ts'
import type { RunContext } from './run.ts'
import type { UpdateSpec } from './spec.ts'
import { RankTeam } from './team.ts'

/** It is of use to later updates only: none waits longer for it, and none is late because of it. */
const MOST_MS = 10_000
const LEAST_MS = 1000
/** For the engines' workers to leave. */
const LEAVE_MS = 2000
/** What is left to do when the time for leaving is over. */
const CLOSE_MS = 500
const LATE = {
  code: 'engine_timeout',
  message: 'the engine has not said where its weights lie',
} as const
const DONE = 'the next update may go straight into the memory of the engine'

export interface DirectPreparation {
  readonly context: Pick<RunContext, 'pool' | 'journal' | 'sockets' | 'closing'>
  readonly spec: UpdateSpec
  /** Of its own. */
  readonly run: number
  readonly version: HeldVersion
  /** New ones: what the engines have said to the update stays with its own. */
  readonly contacts: readonly EngineContact[]
  /** Of the update, on `clockMs`. */
  readonly deadlineMs: number
  /** Ends it before. */
  readonly signal: AbortSignal
}

/**
 * After an update through the ring, while the engines are still paused: has them say where their weights lie and plans for it, so
 * that the first direct update is as fast as later ones. Changes nothing in them, and what fails here is no failure of the update:
 * the next one finds out itself.
 */
export async function prepareDirect(preparation: DirectPreparation): Promise<void> {
  const { spec, contacts, deadlineMs, signal } = preparation
  if (spec.mode !== 'auto' || directObstacle(spec, contacts) !== null) return
  const untilMs = Math.min(clockMs() + MOST_MS, deadlineMs - LEAVE_MS - CLOSE_MS)
  if (untilMs - clockMs() < LEAST_MS) return
  try {
    await lookAndPlan(preparation, untilMs)
  } catch (error) {
    if (signal.aborted) return
    const { message } = CkptError.wrap(error)
    log.warn('the next update will not be direct: {message}', { message })
    // until it has taken an update and says otherwise
    for (const { record } of contacts) record.notDirect ??= `when it was asked, ${message}`
  }
}

/** @throws CkptError what went wrong, after every worker has left or was given up */
async function lookAndPlan(preparation: DirectPreparation, untilMs: number): Promise<void> {
  const { context, spec, run, version, contacts, signal } = preparation
  const links = await context.pool.use(spec.ranks)
  const layoutKey = await keepLayout(version, links)
  const { promise: failed, reject } = Promise.withResolvers<never>()
  const fail = (failure: Failure) => reject(CkptError.from(failure))
  const team = new RankTeam(run, links, fail)
  const timer = setTimeout(() => fail(LATE), untilMs - clockMs())
  try {
    const looked = open(preparation, team, layoutKey, untilMs).then(() =>
      team.reachedDirectly('looked'),
    )
    const told = await Promise.race([looked, failed, abortOf(signal)])
    team.leave(told ?? DONE, LEAVE_MS)
  } catch (error) {
    team.abort(CkptError.wrap(error).failure, LEAVE_MS)
    throw error
  } finally {
    clearTimeout(timer)
    await Promise.race([team.left(), Bun.sleep(LEAVE_MS + CLOSE_MS)])
    await context.journal.ended((address) => context.pool.keeps(address))
  }
  await Promise.all(contacts.map((one) => one.giveUpDirect(spec.id, false, signal)))
}

async function open(
  { context, spec, version, contacts }: DirectPreparation,
  team: RankTeam,
  layoutKey: string,
  untilMs: number,
): Promise<void> {
  const { journal, sockets, closing } = context
  const conversations = new UpdateConversations(spec, contacts, sockets)
  const { addresses } = conversations
  const openMs = Math.min(spec.openMs, untilMs - clockMs())
  const { buffers, readings } = version
  await Promise.all([
    team.openDirect({ layoutKey, buffers, readings, openMs, deadlineMs: untilMs }, (rank) => ({
      address: addresses.get(rank) as string,
      engine: conversations.engineKey(rank) as string,
    })),
    journal.conversations(conversations.journalled(version)),
  ])
  team.begin()
  const seconds = (untilMs + LEAVE_MS - clockMs()) / 1000
  for (const contact of contacts) {
    const map = contact.map(addresses)
    void contact.post(map, spec, seconds, closing, true).then((result) => {
      team.http(contact.ranks, result)
    })
  }
}
