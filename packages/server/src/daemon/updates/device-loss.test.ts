import { expect, test } from 'bun:test'
import type { Failure } from '@ckpt/core'
import { DeviceLoss } from './device-loss.ts'

const LOST: Failure = { rank: 0, code: 'device_lost', message: 'Xid 79' }

/** What it has told so far. */
function watched(busy: () => boolean) {
  const told: Failure[] = []
  const loss = new DeviceLoss(busy)
  void loss.told.then((failure) => told.push(failure))
  return { loss, told }
}

test('without an update it is told at once, and nothing else is', async () => {
  const { loss, told } = watched(() => false)
  loss.take({ code: 'device_error', message: 'out of resources' })
  loss.idle()
  await Bun.sleep(0)
  expect(told).toEqual([])
  loss.take(LOST)
  await Bun.sleep(0)
  expect(told).toEqual([LOST])
})

test('amid an update it is told when that has ended: the first one counts', async () => {
  const { loss, told } = watched(() => true)
  loss.take(LOST)
  loss.take({ ...LOST, rank: 1 })
  await Bun.sleep(0)
  expect(told).toEqual([])
  loss.idle()
  await Bun.sleep(0)
  expect(told).toEqual([LOST])
})
