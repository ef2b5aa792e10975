-- One row per question that has at least two different answers; exact duplicates count once, under their smallest id.
with keyed as not materialized (
    select id, question, answer,
           case $normalise
               when 'exact' then question
               when 'trim'  then trim(question)
               when 'lower' then lower(trim(question))
               else trim(regexp_replace(lower(question), '[^\p{L}\p{N}]+', ' ', 'g'))
           end as key
    from rows
),
-- Lists are held in memory, so only of what may repeat; the hash keeps the texts out of the search for it.
suspects as (
    select hash(key) as hashed from keyed group by hashed having count(*) > 1
),
repeated as (
    select keyed.* from keyed semi join suspects on hash(key) = hashed where key is not null
),
candidates as (
    select key, answer, min(id) as id, min(question) as question, list(id) as every_id
    from repeated
    group by key, answer
),
-- Sorted afterwards: an aggregate that sorts holds every text with its id, list by list. Records are sorted by their id.
groups as (
    select list_sort(list({id: id, question: question, answer: answer, every_id: every_id})) as members
    from candidates
    group by key
    having count(*) > 1
)
select members[1].id as id,
       members[1].question as question,
       list_transform(members, lambda member: member.id) as ids,
       list_transform(members, lambda member: member.answer) as answers,
       list_sort(flatten(list_transform(members, lambda member: member.every_id))) as every_id
from groups
