# Write a function to add up the numbers of a list.
def total(numbers):
    result = 0
    for number in numbers:
        result += number
    return
