import { expect, test } from 'bun:test'
import { IdleCollection } from './idle-collection.ts'

/** @returns how often garbage was collected */
async function collected(
  play: (collection: IdleCollection) => Promise<void> | void,
  idle = true,
): Promise<number> {
  let count = 0
  const collection = new IdleCollection(
    () => idle,
    () => void count++,
  )
  await play(collection)
  await Bun.sleep(200)
  return count
}

test('once when updates have ended and nothing has come', async () => {
  const twice = async (collection: IdleCollection) => {
    collection.restart()
    await Bun.sleep(20)
    collection.restart()
  }
  expect(await collected(twice)).toBe(1)
})

test('not when another update has come meanwhile', async () => {
  const came = (collection: IdleCollection) => {
    collection.restart()
    collection.pause()
  }
  expect(await collected(came)).toBe(0)
})

test('not while anything goes on', async () => {
  expect(await collected((collection) => collection.restart(), false)).toBe(0)
})

test('a process that has nothing else to do does not wait for it', async () => {
  const module = JSON.stringify(`${import.meta.dir}/idle-collection.ts`)
  const code = `import { IdleCollection } from ${module}; new IdleCollection(() => true, () => process.exit(3)).restart()`
  const { exitCode } = Bun.spawnSync([process.execPath, '-e', code])
  expect(exitCode).toBe(0)
})
