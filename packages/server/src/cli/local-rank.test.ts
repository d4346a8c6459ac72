import { expect, test } from 'bun:test'
import { daemonAddress } from './client.ts'
import { followLocalDaemon, isFurtherLocalRank } from './local-rank.ts'

const TIMES = { lookMs: 1, startMs: 60 }
const address = daemonAddress('/nowhere/ckpt.sock', undefined)
const NEVER = new Promise(() => {})

/** A daemon that answers as the list says, then as its last entry does. */
function daemonOf(answers: readonly boolean[]) {
  let asked = 0
  const answer = async () => answers[Math.min(asked++, answers.length - 1)] as boolean
  return { address, answers: answer, asked: () => asked }
}

test('only further processes of torchrun on one host follow', () => {
  expect(isFurtherLocalRank('env', { LOCAL_RANK: '3' })).toBe(true)
  expect(isFurtherLocalRank('env', { LOCAL_RANK: '0' })).toBe(false)
  expect(isFurtherLocalRank('env', {})).toBe(false)
  expect(isFurtherLocalRank('10.0.0.1:1', { LOCAL_RANK: '3' })).toBe(false)
  expect(() => isFurtherLocalRank('env', { LOCAL_RANK: 'x' })).toThrow("LOCAL_RANK is 'x'")
})

test('it ends with the daemon, which may start later and be silent for a moment', async () => {
  const daemon = daemonOf([false, false, true, false, true, false, false, false, false])
  await followLocalDaemon(daemon, NEVER, TIMES)
  expect(daemon.asked()).toBe(9)
})

test('it ends when it is told to, and fails where no daemon starts', async () => {
  await followLocalDaemon(daemonOf([true]), Bun.sleep(20), TIMES)
  await followLocalDaemon(daemonOf([false]), Bun.sleep(5), { ...TIMES, startMs: 60_000 })
  await expect(followLocalDaemon(daemonOf([false]), NEVER, TIMES)).rejects.toThrow(
    'the daemon of local rank 0 does not answer at',
  )
})
