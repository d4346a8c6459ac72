import { expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { curvePublicKey } from '@ckpt/cuda'
import { deriveKeys, isProof, proofOf } from './keys.ts'

const digest = (token: string) => createHash('sha256').update(token).digest()

test('a token gives the same keys everywhere, another token others', () => {
  const keys = deriveKeys(digest('a'))
  expect(deriveKeys(digest('a'))).toEqual(keys)
  const other = deriveKeys(digest('b'))
  const all = [keys, other].flatMap(({ leader, follower, proof }) => [
    leader.secret,
    leader.public,
    follower.secret,
    follower.public,
    proof,
  ])
  expect(new Set(all.map((key) => key.toHex())).size).toBe(10)
  expect(all.every((key) => key.length === 32)).toBe(true)
  expect(curvePublicKey(keys.leader.secret)).toEqual(keys.leader.public)
})

test('a proof holds for its leader, follower and node rank only', () => {
  const { proof: key } = deriveKeys(digest('a'))
  const proof = proofOf(key, 'l', 'f', 1)
  expect(isProof(key, proof, 'l', 'f', 1)).toBe(true)
  expect(isProof(key, proof, 'm', 'f', 1)).toBe(false)
  expect(isProof(key, proof, 'l', 'g', 1)).toBe(false)
  expect(isProof(key, proof, 'l', 'f', 2)).toBe(false)
  expect(isProof(deriveKeys(digest('b')).proof, proof, 'l', 'f', 1)).toBe(false)
  expect(isProof(key, '', 'l', 'f', 1)).toBe(false)
})
